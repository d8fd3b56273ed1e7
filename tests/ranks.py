"""Processes as `torchrun` starts them, by forks of the test's process, in which all libraries are imported already."""

import faulthandler
import os
import signal
import sys
import time
import warnings

from torch.distributed import TCPStore

LIMIT = 240.0
"""Seconds after which a process counts as hanging."""
PATIENCE = 5.0


def in_processes(n, task, folder):
    """Runs `task(rank)` in n processes; returns the exit code and the output of each.

    The store of the processes is in this one, as torchrun has it in a process of its own. It is made after the forks: a thread
    that is starting, such as that of the store, can hold a lock that a forked process would wait for.
    """
    address, children = folder / "port", []
    for rank in range(n):
        (folder / f"output-{rank}").touch()  # a process can be ended before it opens its file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fork of a process with threads
            child = os.fork()
        if child == 0:
            _run(rank, n, address, task, folder / f"output-{rank}")
        children.append(child)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    (folder / "new-port").write_text(str(store.port))
    (folder / "new-port").rename(address)
    outputs = [folder / f"output-{rank}" for rank in range(n)]
    codes = _ended(children, outputs)
    address.unlink()
    return codes, [output.read_text() for output in outputs]


def _run(rank, n, address, task, output):
    """Runs a task and ends this process; 99 is the code of an unexpected error."""
    while not address.exists():
        time.sleep(0.005)
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": address.read_text(), "TORCHELASTIC_USE_AGENT_STORE": "True"},
    }
    code = 99
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stream = output.open("w")
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    faulthandler.register(signal.SIGUSR1, file=stream)
    sys.stdout = sys.stderr = stream
    try:
        code = task(rank) or 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
        code = getattr(error, "exit_code", 99)
    finally:
        stream.flush()
        os._exit(code)


def _ended(children, outputs):
    """Waits for the processes and returns their exit codes.

    If one fails, those that go on for `PATIENCE` seconds get SIGTERM. torchrun sends it sooner, so that their exit codes depend
    on the order in which they end.
    """
    codes, until, stop_at = {}, time.monotonic() + LIMIT, None
    while len(codes) < len(children):
        running = [child for child in children if child not in codes]
        for child in running:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) and stop_at is None:
            stop_at = time.monotonic() + PATIENCE
        if stop_at is not None and time.monotonic() > stop_at:
            stop_at = until + 1.0
            for child in set(running) - set(codes):
                os.kill(child, signal.SIGTERM)
        if time.monotonic() > until:
            for number in (signal.SIGUSR1, signal.SIGKILL):
                for child in set(running) - set(codes):
                    os.kill(child, number)
                time.sleep(1.0)
            places = "\n".join(output.read_text() for output in outputs)
            raise AssertionError(f"processes hang; the others have the exit codes {list(codes.values())}\n{places}")
        time.sleep(0.02)
    return [codes[child] for child in children]
