"""Files that are never half-written, read without trusting them, and their content hashes."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sj_robust.errors import SJRobustError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


_begun: set[Path] = set()  # temporary folders that are being written


def remove_begun() -> None:
    """Remove what `atomic_path` and `atomic_folder` have not finished: for who ends the process
    with no exception to do it."""
    for path in list(_begun):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def atomic_path(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block succeeds, delete
    it when not.

    For one file that a library wants to write itself. The rename is atomic on POSIX file systems.
    `mode`: less the umask, as of open. What earlier calls left beside `path` when they were killed
    is removed.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _beside(target) as folder:
        temporary = folder / target.name
        with _named(target):
            yield temporary
        temporary.chmod(mode & ~_umask())
        _flush(temporary)
        os.replace(temporary, target)


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Let a full disk be that of `target`: the system names no file where one was open."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        if full and error.filename is None:
            error.filename = str(target)
        raise


def write_atomic(path: str | os.PathLike[str], content: str | bytes, mode: int = 0o666) -> None:
    """Write text (UTF-8) or bytes to `path`, whole or not at all."""
    with atomic_path(path, mode) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise SJRobustError, before the work, where its result could not be written to the file
    `path`; its folders need not exist."""
    target = Path(path)
    if os.path.isdir(target):  # of a name that is too long, pathlib's own would raise
        raise SJRobustError(
            f"{target} is a folder, expected a file to write: name one in it, such as"
            f" {target / 'result.json'}"
        )
    # a rename would put a file in the place of /dev/null
    if os.path.exists(target) and not os.path.isfile(target):
        raise SJRobustError(
            f"{target} is no regular file, which is what would be written: choose another path"
        )
    check_within(target.parent, target.name)


def check_within(path: str | os.PathLike[str], name: str = "file") -> None:
    """The same where a file or folder `name` could not be written into the folder `path`, be it
    there or still to be made.

    It is tried: permissions alone know nothing of full disks, read-only ones, or quotas.
    """
    folder = there = Path(path)
    while not os.path.lexists(there) and there != there.parent:
        there, name = there.parent, there.name
    if os.path.exists(there) and not os.path.isdir(there):
        raise SJRobustError(
            f"{there} is a file, expected a folder to write into: choose another path"
        )
    try:
        handle, probe = tempfile.mkstemp(dir=there, prefix=f".{name}.", suffix=".part")
        try:
            os.write(handle, bytes(4096))
            os.fsync(handle)
        finally:
            os.close(handle)
            os.unlink(probe)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        advice = "make room, or choose another path"
        raise SJRobustError(f"{folder} cannot be written to ({reason}): {advice}") from None


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; put it in place of `path` when the block succeeds,
    delete it when not.

    On Linux the two folders are exchanged in one system call, so that `path` is complete at every
    moment. Elsewhere the old one is moved aside first, under a name beginning with a dot, and
    removed last. Where `path` is a link, the folder behind it is replaced and the link stays. What
    earlier calls left beside `path` when they were killed is removed.
    """
    target = behind_links(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _beside(target) as temporary:
        temporary.chmod(0o777 & ~_umask())
        with _named(target):
            yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if not target.exists():
            os.replace(temporary, target)
        elif not _exchange(temporary, target):
            old = temporary.with_suffix(".old")
            os.replace(target, old)
            os.replace(temporary, target)
            shutil.rmtree(old, ignore_errors=True)


def behind_links(folder: str | os.PathLike[str]) -> Path:
    """Where a folder really lies, or will. A link may lead to nothing yet, but not into a folder
    that is not there: a disk that is not mounted must not be made up. Raises SJRobustError for such
    a link, and for links in a circle."""
    try:
        found = Path(os.path.realpath(folder))
    except ValueError as error:  # a path with a null character
        advice = "choose another folder"
        raise SJRobustError(f"{str(folder)!r} cannot be written ({error}): {advice}") from None
    if os.path.islink(folder) and (found.is_symlink() or not found.parent.is_dir()):
        what = "to itself" if found.is_symlink() else f"into {found.parent}, which is no folder"
        raise SJRobustError(f"{folder} is a link {what}: correct it, or choose another folder")
    return found


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raise SJRobustError where `atomic_folder` could not write, before there is any work to
    lose."""
    target = behind_links(folder)
    if Path(folder).name in ("", "..") or os.path.ismount(target):
        raise SJRobustError(f"{folder} cannot be put in place as a whole: name a folder in it")
    check_within(target.parent, target.name)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, locked so that other processes see it is at work, removed
    in the end. What killed processes left there is removed first. For files too: a file of its own
    could not be locked, as HDF5 locks what it writes."""
    _clear_left(target)
    temporary, lock = _begin(target)
    _begun.add(temporary)
    try:
        yield temporary
    finally:
        # after an exchange this is the old version
        shutil.rmtree(temporary, ignore_errors=True)
        _begun.discard(temporary)
        if lock is not None:
            os.close(lock)


def _begin(target: Path) -> tuple[Path, int | None]:
    """A temporary folder beside `target`, for this user alone, and a descriptor that tells other
    processes that it is at work."""
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
    lock = _lock(temporary)
    if lock is None or temporary.exists():
        return temporary, lock
    os.close(lock)  # another process took it for a left one, in the moment before it was locked
    return _begin(target)


def _clear_left(target: Path) -> None:
    """Remove the temporary folders of killed processes beside `target`, and put back an
    old version that was moved aside for nothing."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.????????.*"):
        if (
            path.suffix not in (".part", ".old")
            or path.is_symlink()
            or (lock := _lock(path)) is None
        ):
            continue
        try:
            if path.suffix == ".old" and not target.exists():
                os.replace(path, target)
            else:
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds `folder` against other processes until it is closed, which the system
    does however this one ends; None where another holds it, or where folders cannot be locked."""
    if fcntl is None:
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


@contextmanager
def only_one(folder: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Hold `folder`, made where it is missing, against other processes while the block runs. A
    .lock left by a kill means nothing.

    Raises SJRobustError, naming `what` is going on there, where another process holds it. Does
    nothing on Windows.
    """
    if fcntl is None:
        yield
        return
    path = Path(folder)
    fresh = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    with open(path / ".lock", "w", encoding="utf-8") as lock:
        try:
            # released by the system however the process ends
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # a file system without locks
                yield
                return
            raise SJRobustError(
                f"another process has {what} in {path}: wait for it, stop it, or choose another"
                " folder"
            ) from None
        try:
            yield
        finally:
            (path / ".lock").unlink(missing_ok=True)
            if fresh:
                with suppress(OSError):  # not empty: as it should be
                    path.rmdir()


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically (renameat2 with RENAME_EXCHANGE); False where the system or file
    system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    at_cwd, rename_exchange = -100, 2
    return bool(
        renameat2(
            at_cwd,
            os.fsencode(one.absolute()),
            at_cwd,
            os.fsencode(other.absolute()),
            rename_exchange,
        )
        == 0
    )


def legible(name: str) -> str:
    """A file name as text for a record: bytes that were no text, which Python holds as lone
    surrogates, as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cache_folder(*, make: bool = True) -> Path:
    """$SJ_ROBUST_CACHE, else $XDG_CACHE_HOME/sj_robust, else ~/.cache/sj_robust.

    With `make` it is made, for this user alone, where it is missing and can be. Raises RuntimeError
    for a user without a home.
    """
    if named := os.environ.get("SJ_ROBUST_CACHE"):
        folder = Path(named).expanduser()
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sj_robust"
    if make:
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def private_cache(name: str) -> Path:
    """The folder `name` of the cache, for what this user alone may write, made (0700) where it is
    missing.

    Raises SJRobustError where it or the cache is a link or open to other users, OSError where it
    cannot be made, and RuntimeError as `cache_folder` does. The cache itself may be root's, or
    shared as /tmp is, where nobody can put one folder in place of another.
    """
    cache = cache_folder()
    folder = cache / name
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    for path in (cache, folder):
        found = path.lstat()
        owners = {os.geteuid(), 0} if path is cache else {os.geteuid()}
        shared = path is cache and found.st_mode & stat.S_ISVTX
        if stat.S_ISLNK(found.st_mode):
            raise SJRobustError(
                f"{path} is a link: put a folder of your own there, or name one with"
                " SJ_ROBUST_CACHE"
            )
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        if found.st_uid not in owners:
            raise SJRobustError(
                f"{path} belongs to another user: name a folder of your own with SJ_ROBUST_CACHE"
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not shared:
            raise SJRobustError(
                f"other users may write into {path}: chmod go-w, or name another folder with"
                " SJ_ROBUST_CACHE"
            )
    return folder


def zoo_root() -> Path:
    """The zoo folder: inside the package in a wheel, beside it in a checkout. Raises SJRobustError
    where neither exists."""
    package = Path(__file__).resolve().parent
    for folder in (package / "zoo", package.parent / "zoo"):
        if folder.is_dir():
            return folder
    raise SJRobustError(
        f"no zoo folder in {package} or beside it: the installation is incomplete, install"
        " sj-robust again"
    )
