"""Who looks into the files of a scan: threads, for files on other machines, or dask's workers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import LocksmithError
from ..messages import message
from ..report.findings import Findings, findings_or_fault, read_alone
from ..report.library import Engine
from ..report.listing import Listed
from .addresses import TIMEOUT, is_address
from .remote import read_remote

AT_A_TIME = 16  # files of one of dask's tasks
JOIN = 30.0  # seconds to wait for a scheduler at most


class ClusterError(LocksmithError):
    """A dask cluster that cannot do the work: what is wrong, and the remedy."""

    def __init__(self, fault: str, remedy: str):
        super().__init__(message("errors.fault_and_remedy", fault=fault, remedy=remedy))


class Job(NamedTuple):
    """A file to look into, and whether PEFT's settings are beside it, and what other tools keep."""

    path: str
    has_settings: bool
    has_more: bool = True


def job_of(listed: Listed) -> Job:
    """Looking into a listed file."""
    return Job(listed.path, bool(listed.stamp.config_changed), bool(listed.beside))


def findings_at(job: Job, timeout: float = TIMEOUT) -> Findings:
    """What is in a file, here or at an address."""
    if not is_address(job.path):
        read = None if job.has_settings else read_alone
        return findings_or_fault(job.path, read=read, is_alone=not job.has_more)
    return findings_or_fault(
        job.path, read=partial(_read, job.has_settings, timeout), is_alone=True
    )


def _read(has_settings: bool, timeout: float, address: str) -> Any:
    return read_remote(address, has_settings, timeout)


def in_threads(workers: int, timeout: float) -> Engine:
    """Look into several files at a time."""

    def engine(files: Sequence[Listed]) -> Iterator[Findings]:
        pool = ThreadPoolExecutor(workers)
        try:
            yield from pool.map(partial(findings_at, timeout=timeout), map(job_of, files))
        finally:
            pool.shutdown(cancel_futures=True)

    return engine


def on_dask(
    scheduler: str | None,
    workers: int | None,
    timeout: float,
    *,
    version: str,
    tell: Callable[[int], None],
) -> Engine:
    """Have dask's workers look into the files: those of the cluster whose `scheduler` has this
    address (or of the one that dask's own settings name), else `workers` processes on this machine.

    What a worker cannot read is read here, as it may see other folders: `tell` is called at the
    end with how many files that were, of those that could be read. Raises ClusterError.
    """

    def engine(files: Sequence[Listed]) -> Iterator[Findings]:
        if not files:
            return
        # Plain tuples, as a worker that lacks this package could not even read others.
        wanted: list[tuple[Any, ...]] = [tuple(job_of(listed)) for listed in files]
        batches = [wanted[at : at + AT_A_TIME] for at in range(0, len(wanted), AT_A_TIME)]
        here = 0
        work = task(str(Path(__file__).resolve().parents[1]), version, timeout)
        try:
            with cluster(scheduler, workers, timeout) as client:
                futures = client.map(work, batches, pure=False)
                for batch, future in zip(batches, futures, strict=True):
                    for job, findings in zip(batch, _result(future, version), strict=True):
                        sure = findings_at(Job(*job), timeout) if findings.error else findings
                        here += bool(findings.error and not sure.error)
                        yield sure
        finally:
            if here:
                tell(here)

    return engine


def _result(future: Any, version: str) -> Sequence[Findings]:
    try:
        theirs, findings = future.result()
    except LocksmithError:
        raise
    except ModuleNotFoundError as error:
        name = error.name or ""
        fault = message("commands.workers_lack", name=name)
        raise ClusterError(fault, message("commands.install_on_workers", version=version)) from None
    except Exception as error:
        raise _broken(error) from None
    if theirs != version:
        fault = message("commands.workers_differ", theirs=theirs, version=version)
        raise ClusterError(fault, message("commands.install_on_workers", version=version))
    return [Findings(*one) for one in findings]


def _broken(error: Exception) -> ClusterError:
    reason = f"{type(error).__name__}: {error}"[:160]
    return ClusterError(
        message("commands.cluster_broken", reason=reason), message("commands.check_cluster")
    )


@contextmanager
def cluster(
    scheduler: str | None, workers: int | None, timeout: float
) -> Generator[Any, None, None]:
    """A client of the cluster, within `timeout` seconds. Raises ClusterError."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise ClusterError(
            message("commands.needs_dask"), message("commands.install_dask")
        ) from None
    import logging

    address = scheduler or dask.config.get("scheduler-address", None)
    own = None
    try:
        if not address:
            own = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",  # None takes a port of its own on all addresses
                silence_logs=logging.CRITICAL,
            )
        client = Client(own or address, timeout=min(timeout, JOIN), set_as_default=False)
        client.wait_for_workers(1, timeout=timeout)
    except Exception as error:
        if own is not None:
            own.close()
        raise _broken(error) from None
    try:
        yield client
    finally:
        client.close()
        if own is not None:
            own.close()


def task(
    package: str, version: str, timeout: float
) -> Callable[[Sequence[tuple[Any, ...]]], tuple[str, list[tuple[Any, ...]]]]:
    """What a worker runs. It travels whole, as a function within a function does, and finds this
    package on the worker: in the same folder, for a clone on the same machine, else installed.
    """

    def work(jobs: Sequence[tuple[Any, ...]]) -> tuple[str, list[tuple[Any, ...]]]:
        import os
        import sys
        from importlib import import_module
        from importlib.util import spec_from_file_location

        class Finder:
            @staticmethod
            def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
                file = os.path.join(package, "__init__.py")
                if name != "lora_locksmith" or not os.path.isfile(file):
                    return None
                return spec_from_file_location(name, file, submodule_search_locations=[package])

        if "lora_locksmith" not in sys.modules:
            sys.meta_path.insert(0, Finder)
        parser = import_module("lora_locksmith.commands.parser")
        if parser.version() != version:
            return parser.version(), []
        engines = import_module("lora_locksmith.commands.engines")
        found = [engines.findings_at(engines.Job(*job), timeout) for job in jobs]
        return version, [tuple(findings) for findings in found]

    return work
