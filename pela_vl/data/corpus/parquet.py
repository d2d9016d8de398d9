"""What img2dataset writes as parquet: tables of what was downloaded, with or without the images themselves.

Reading parquet needs pyarrow, the extra `corpus`.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pela_vl.base.errors import UserError

_WANTED = ("key", "caption", "txt", "url", "status", "error_message")


class CutFile(UserError):
    """A tar or parquet file that is cut or damaged: it can be downloaded again, or left out."""


def has_images(path: str) -> bool:
    """Whether a parquet file holds images (img2dataset with output_format=parquet), not only their table."""
    with _opened(path) as file:
        return "jpg" in file.schema.names


def parquet_rows(path: str, with_images: bool = False) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
    """Yield (values by column, (row group, row in it)). with_images: rows say under "there" whether they hold one.

    Raises `UserError` for a file that has no column `key`, `CutFile` for one that cannot be read.
    """
    with _opened(path) as file:
        names = [name for name in _WANTED if name in file.schema.names]
        if "key" not in names:
            raise UserError(f"{path}: has no column 'key'; it is no table of img2dataset")
        for group in range(file.metadata.num_row_groups):
            table = file.read_row_group(group, columns=[*names, *(["jpg"] if with_images else [])])
            there = table.column("jpg").is_valid().to_pylist() if with_images else [True] * len(table)
            for number, row in enumerate(table.select(names).to_pylist()):
                yield {**row, "there": there[number]}, (group, number)


def parquet_image(path: str, group: int, row: int) -> bytes:
    """The encoded bytes of one image.

    The last two row groups stay in memory, because rows are asked for in order.

    Args:
        path: of the parquet file.
        group: row group.
        row: row in the group.

    Raises:
        CutFile: If the file is damaged.
    """
    return _images(path, group)[row].as_py()


@lru_cache(maxsize=2)
def _images(path: str, group: int) -> Any:
    with _opened(path) as file:
        return file.read_row_group(group, columns=["jpg"]).column("jpg")


class _opened:
    """A parquet file, and pyarrow's errors as ours."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> Any:
        try:
            import pyarrow.parquet as parquet
        except ImportError:
            raise UserError(f"{self.path}: parquet files need pyarrow: pip install 'pela_vl[corpus]'") from None
        try:
            self.file = parquet.ParquetFile(self.path)
        except Exception as error:
            self.__exit__(type(error), error, None)
            raise
        return self.file

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if hasattr(self, "file"):
            self.file.close()
        if error is None or isinstance(error, UserError):
            return
        from pyarrow import ArrowException

        if isinstance(error, ArrowException | OSError):
            raise CutFile(f"{self.path}: cannot be read as parquet ({' '.join(str(error).split())})") from None
