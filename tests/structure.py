"""Counts the rooms of a package, its floors and the import arrows between rooms: `python tests/structure.py [checkout]`.

A room is a folder with modules, or a module that lies beside the folders. An arrow stands for all imports from one room
into another. A room's floor is one above the highest room that it imports from.
"""

import ast
import sys
from pathlib import Path


def arrows(checkout: Path, package: str = "pela_vl") -> tuple[set[str], set[tuple[str, str]]]:
    """The rooms of a package, and which room imports from which."""
    files = {
        file.relative_to(checkout).with_suffix("").parts: file
        for file in (checkout / package).rglob("*.py")
        if file.name != "__main__.py"
    }
    modules = {".".join(parts).removesuffix(".__init__"): file for parts, file in files.items()}

    def room(name: str) -> str:
        parent = name.rpartition(".")[0]
        return name if parent == package or modules[name].name == "__init__.py" else parent

    found = set()
    for name, file in modules.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            wanted = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
            for target in wanted:
                while target and target not in modules:
                    target = target.rpartition(".")[0]
                if target not in ("", package) and name != package and room(target) != room(name):
                    found.add((room(name), room(target)))
    return {room(name) for name in modules if name != package}, found


def floors(rooms: set[str], found: set[tuple[str, str]]) -> dict[str, int]:
    """Every room's floor, the lowest 1. Raises ValueError if rooms import one another in a circle."""
    floor: dict[str, int] = {}
    while len(floor) < len(rooms):
        free = [r for r in rooms - floor.keys() if all(below in floor for room, below in found if room == r)]
        if not free:
            raise ValueError(f"these rooms import one another in a circle: {sorted(rooms - floor.keys())}")
        floor |= {r: 1 + max((floor[below] for room, below in found if room == r), default=0) for r in free}
    return floor


if __name__ == "__main__":
    rooms, found = arrows(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    floor = floors(rooms, found)
    for room in sorted(rooms, key=lambda name: (-floor[name], name)):
        below = ", ".join(sorted(target.partition(".")[2] for source, target in found if source == room))
        print(f"{floor[room]}  {room.partition('.')[2]:<14} {below}")
    print(f"{len(rooms)} rooms, {max(floor.values())} floors, {len(found)} arrows")
