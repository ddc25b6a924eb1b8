"""Files that are never half-written, read without trusting them, and their content hashes."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sj_robust.errors import SJRobustError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block succeeds, delete it when not.

    For one file that a library wants to write itself. The rename is atomic on POSIX file systems.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _flush(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write text (UTF-8) or bytes to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; put it in place of `path` when the block succeeds, delete it when not.

    On Linux the two folders are exchanged in one system call, so that `path` is complete at every moment. Elsewhere the
    old one is moved aside first, under a name beginning with a dot, and removed last. Where `path` is a link, the folder behind it
    is replaced and the link stays. What earlier calls left beside `path` when they were killed is removed.
    """
    target = behind_links(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_left(target)
    temporary, lock = _begin(target)
    try:
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
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after an exchange this is the old version
        if lock is not None:
            os.close(lock)


def behind_links(folder: str | os.PathLike[str]) -> Path:
    """Where a folder really lies, or will. A link may lead to nothing yet, but not into a folder that is not there: a disk that is not
    mounted must not be made up. Raises SJRobustError for such a link, and for links in a circle."""
    found = Path(os.path.realpath(folder))
    if Path(folder).is_symlink() and (found.is_symlink() or not found.parent.is_dir()):
        what = "to itself" if found.is_symlink() else f"into {found.parent}, which is no folder"
        raise SJRobustError(f"{folder} is a link {what}: correct it, or choose another folder")
    return found


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raise SJRobustError where `atomic_folder` could not write, before there is any work to lose."""
    try:
        target = behind_links(folder)
        above = next(parent for parent in target.parents if os.path.lexists(parent))
        with tempfile.TemporaryDirectory(dir=above, prefix=f".{target.name}.", suffix=".part"):
            pass
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise SJRobustError(f"{str(folder)!r} cannot be written ({reason}): choose another folder") from None


def _begin(target: Path) -> tuple[Path, int | None]:
    """A temporary folder beside `target`, and a descriptor that tells other processes that it is at work."""
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
    temporary.chmod(0o777 & ~_umask())
    lock = _lock(temporary)
    if lock is None or temporary.exists():
        return temporary, lock
    os.close(lock)  # another process took it for a left one, in the moment before it was locked
    return _begin(target)


def _clear_left(target: Path) -> None:
    """Remove the temporary folders of killed processes beside `target`, and put back an old version that was moved aside for nothing."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.????????.*"):
        if path.suffix not in (".part", ".old") or path.is_symlink() or (lock := _lock(path)) is None:
            continue
        try:
            if path.suffix == ".old" and not target.exists():
                os.replace(path, target)
            else:
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds `folder` against other processes until it is closed, which the system does however this one ends; None
    where another holds it, or where folders cannot be locked."""
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
    """Hold `folder`, made where it is missing, against other processes while the block runs. A .lock left by a kill means nothing.

    Raises SJRobustError, naming `what` is going on there, where another process holds it. Does nothing on Windows.
    """
    if fcntl is None:
        yield
        return
    path = Path(folder)
    fresh = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    with open(path / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system however the process ends
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # a file system without locks
                yield
                return
            raise SJRobustError(f"another process has {what} in {path}: wait for it, stop it, or choose another folder") from None
        try:
            yield
        finally:
            (path / ".lock").unlink(missing_ok=True)
            if fresh:
                with suppress(OSError):  # not empty: as it should be
                    path.rmdir()


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically (renameat2 with RENAME_EXCHANGE); False where the system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    at_cwd, rename_exchange = -100, 2
    return bool(renameat2(at_cwd, os.fsencode(one.absolute()), at_cwd, os.fsencode(other.absolute()), rename_exchange) == 0)


def read_text(path: str | os.PathLike[str], limit: int, needs: str = "") -> str:
    """The text of a regular file of at most `limit` bytes: UTF-8, with or without a byte order mark.

    A pipe or device, which may never end, is not opened for reading. `needs` ends the error where there is no such file.
    Raises SJRobustError where it is missing, of another kind, larger or not text.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise SJRobustError(f"{path} cannot be read (a folder, pipe or device): expected a regular file")
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise SJRobustError(f"{path} cannot be read ({reason}){': ' if needs else ''}{needs}") from None
    if len(content) > limit:
        raise SJRobustError(f"{path} is larger than {limit} bytes, no such file is written by sj-robust")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SJRobustError(f"{path} is not UTF-8 text: download or save it again") from None


def parse_json(text: str, origin: object) -> dict[str, Any]:
    """The object that `text` holds as JSON. NaN and infinities, which JSON does not have, and keys given twice, of which programs read
    one or the other, are refused. Raises SJRobustError naming `origin`."""

    def constant(name: str) -> float:
        raise ValueError(f"{name} is not a JSON number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if (again := _given_twice(name for name, _ in pairs)) is not None:
            raise ValueError(f"{again[:80]!r} is given twice")
        return dict(pairs)

    try:
        content = json.loads(text, parse_constant=constant, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SJRobustError(f"{origin} is not valid JSON ({reason}): download or save the checkpoint again") from None
    if not isinstance(content, dict):
        raise SJRobustError(f"{origin} holds a JSON {type(content).__name__}, expected an object: download or save the checkpoint again")
    return content


MAX_RECIPE_BYTES = 1 << 18  # PyYAML reads some hundred kB a second


def parse_yaml(text: str, origin: object, advice: str = "correct it") -> Any:
    """What `text` holds as YAML: plain values, lists and mappings.

    Aliases count as often as they stand, because whatever reads the result meets them as often: nine lines can stand for 10⁹ values.
    Raises SJRobustError naming `origin` where it is not YAML, nested too deeply, too much, or has a key twice.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _weigh(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise SJRobustError(f"{origin} is not valid YAML (nested too deeply): {advice}") from None
    except Exception as error:  # PyYAML's constructors raise whatever the values led to
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise SJRobustError(f"{origin} is not valid YAML ({reason}): {advice}") from None


_MOST_VALUES, _DEEPEST = 100_000, 40


def _weigh(node: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """(values, depth) of a YAML node with its aliases written out. Raises ValueError beyond any sensible file."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = (_MOST_VALUES, 0)  # until it is known: an alias inside of what it stands for never ends
    children: list[Any] = [] if isinstance(node.value, str) else node.value
    if node.id == "mapping":
        if (again := _given_twice(key.value for key, _ in node.value if isinstance(key.value, str))) is not None:
            raise ValueError(f"{again[:80]!r} is given twice")
        children = [each for pair in node.value for each in pair]
    weights = [_weigh(child, known) for child in children]
    values, depth = 1 + sum(weight[0] for weight in weights), 1 + max((weight[1] for weight in weights), default=0)
    if values > _MOST_VALUES or depth > _DEEPEST:
        raise ValueError(f"more than {_MOST_VALUES} values with its aliases written out, or nested more than {_DEEPEST} deep")
    known[id(node)] = values, depth
    return values, depth


def _given_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


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


def cache_folder() -> Path:
    """$SJ_ROBUST_CACHE, else $XDG_CACHE_HOME/sj_robust, else ~/.cache/sj_robust. Raises RuntimeError for a user without a home."""
    if folder := os.environ.get("SJ_ROBUST_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sj_robust"


def zoo_root() -> Path:
    """The zoo folder: inside the package in a wheel, beside it in a checkout. Raises SJRobustError where neither exists."""
    package = Path(__file__).resolve().parent
    for folder in (package / "zoo", package.parent / "zoo"):
        if folder.is_dir():
            return folder
    raise SJRobustError(f"no zoo folder in {package} or beside it: the installation is incomplete, install sj-robust again")
