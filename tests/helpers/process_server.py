"""Forks the processes of a test from a process that has imported the library, since that takes seconds a process.

Started by the fixture `forked_processes`. A request is a line of JSON on standard input; the exit codes of the processes and what
they printed are the answer, a line on standard output.
"""

import json
import os
import sys
import tempfile
import traceback
from typing import Any, TextIO

import pela_vl.training.runner  # noqa: F401


def work(request: dict[str, Any], rank: int, log: TextIO) -> None:
    """Run the request's code as a launcher would start it, in a child."""
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request["world"], "MASTER_PORT": request["port"]}
    os.environ |= {name: str(value) for name, value in group.items()} | {"MASTER_ADDR": "127.0.0.1"}
    sys.argv = ["-c", *request["arguments"]]
    exec(request["code"], {"__name__": "__main__"})


def start(request: dict[str, Any], rank: int, log: TextIO) -> int:
    """Fork one process; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work(request, rank, log)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def answer(request: dict[str, Any]) -> list[tuple[int, str]]:
    """(exit code, output) of every process, once all have ended."""
    logs = [tempfile.TemporaryFile("w+") for _ in range(request["world"])]
    children = [start(request, rank, log) for rank, log in enumerate(logs)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    for log in logs:
        log.seek(0)
    return [(code, log.read()) for code, log in zip(codes, logs, strict=True)]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
