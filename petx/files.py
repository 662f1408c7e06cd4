"""Files and folders written whole or not at all, held by one run at a time, and named where they are damaged."""

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from petx.errors import UserError


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a scratch path beside ``path`` to write a file or a folder at; on success it becomes ``path`` by renaming.

    Whatever lay at ``path`` stays until then, and stays if writing fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        target = scratch / path.name
        yield target
        readable = 0o666 & ~_umask()
        for written in [target, *target.rglob("*")] if target.is_dir() else [target]:
            if written.is_file():
                written.chmod(
                    written.stat().st_mode & 0o777 | readable
                )  # some writers make files for their owner alone
                with open(written, "rb") as file:
                    os.fsync(file.fileno())
        if path.is_dir() and target.is_dir():  # a folder cannot be renamed over a filled one
            os.replace(path, scratch / "replaced")
        try:
            os.replace(target, path)
        except BaseException:  # a signal, too, comes between the two
            if (scratch / "replaced").is_dir() and not path.exists():
                os.replace(scratch / "replaced", path)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_json(path: str | os.PathLike, value: Any) -> None:
    """``value`` as indented JSON at ``path``, written whole."""
    with written_whole(path) as target:
        target.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def user_path(text: str | os.PathLike, argument: str) -> Path:
    """The path that a user wrote, with the home folder for ``~``; :class:`UserError` naming ``argument`` if it is none.

    Every path that petx takes goes through here once, as it comes in, so that no part of a run reads it otherwise.
    """
    written = os.fspath(text)
    if not written.strip():
        raise UserError(f"{argument} must be a path, got {written!r}")
    if "\0" in written:
        raise UserError(f"{argument} must be a path without a null character, got {written!r}")
    try:
        if written == "~" or written.startswith("~/"):
            return home() / written[2:].lstrip("/")
        return Path(written).expanduser()
    except RuntimeError as error:
        raise UserError(f"{argument}: {written!r} has no home folder to stand for its ~ ({error})") from error


def home() -> Path:
    """The user's home folder: ``HOME`` if it is a whole path, else the system's own record of it.

    Raises RuntimeError if there is none. An empty ``HOME``, as services have it, would stand for ``/`` or for where a
    command happens to run.
    """
    if os.path.isabs(os.environ.get("HOME", "/")):
        return Path.home()
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError as error:
        raise RuntimeError(f"HOME is {os.environ['HOME']!r}, and the system knows no user {os.getuid()}") from error


def user_name(text: str, argument: str) -> str:
    """A folder or a name of the hub or of petx that a user wrote, as it is but for a home folder, ``~``."""
    return str(user_path(text, argument)) if text.startswith("~") else text


LOCK = ".petx-lock"
_HOLDING: set[tuple[int, str]] = set()  # process and folder: a record lock does not keep its own process out


@contextlib.contextmanager
def held(folder: str | os.PathLike, argument: str) -> Iterator[None]:
    """Hold ``folder`` alone; :class:`UserError` naming ``argument`` if another run holds it, of this process too.

    The system's own record lock: it ends with the process, however that ends, and worker processes do not inherit it.
    The file that a killed process leaves behind means nothing. A file system without locks is used without one.
    A folder that is not there is made, and removed again if nothing was written.
    """
    path, holding = Path(folder, LOCK), (os.getpid(), os.path.realpath(folder))
    if holding in _HOLDING:  # before the file is opened: closing it again would end the lock
        raise _in_use(folder, argument, f"process {os.getpid()}, this one")
    made = _made(Path(folder))
    while True:
        with _opened(path, argument) as file:
            _lock(file, folder, argument)
            if not _is_at(file, path):  # its holder removed it between the two lines above: another may have made one
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}")
            file.flush()
            _HOLDING.add(holding)
            try:
                yield
            finally:
                _HOLDING.discard(holding)
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # something lies there
                    for one in made:
                        one.rmdir()
            return


def _made(folder: Path) -> list[Path]:
    """The folders that had to be made for ``folder`` to be there, the last first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _opened(path: Path, argument: str) -> IO[str]:
    try:
        return open(path, "a+", encoding="utf-8")
    except OSError as error:  # another user's, left behind
        raise UserError(f"{argument}: cannot write {path} ({error.strerror or error}): remove that file") from error


def _in_use(folder: str | os.PathLike, argument: str, holder: str) -> UserError:
    return UserError(
        f"{argument} {str(folder)!r} is in use: another run is writing there ({holder}). Wait for its end, "
        "or choose another folder"
    )


def _lock(file: IO[str], folder: str | os.PathLike, argument: str) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise _in_use(folder, argument, holder) from error
    except OSError:  # the file system has no locks
        pass


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def what_is_damaged(file: str | os.PathLike) -> str | None:
    """Why the JSON, safetensors or zip file (torch's) at ``file`` cannot be read, in words; None if it can be."""
    from safetensors import SafetensorError, safe_open

    file = Path(file)
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            with open(file, "rb"), safe_open(file, "pt"):  # the second calls one that may not be read missing
                pass
        elif file.suffix in (".pt", ".pth", ".bin", ".npz"):
            with open(file, "rb") as opened:
                if opened.read(1) == b"\x80":  # a pickle, as torch once wrote: only unpickling would tell
                    return None
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
            if broken is not None:
                return f"{broken} in it has another checksum"
    except (OSError, ValueError, EOFError, SafetensorError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        return f"{type(error).__name__}: {error}"
    return None


def damaged_files(folder: str | os.PathLike) -> dict[str, str]:
    """The files in ``folder`` that cannot be read, by name, with the reason."""
    found = {}
    for file in sorted(Path(folder).iterdir()):
        reason = what_is_damaged(file) if file.is_file() and not file.name.startswith(".") else None
        if reason is not None:
            found[file.name] = reason
    return found


def read_json(path: str | os.PathLike, *needed: str, hint: str) -> dict[str, Any]:
    """The JSON object at ``path`` with the fields ``needed``; :class:`UserError` names the file and gives ``hint``."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or cannot be read ({error}); {hint}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it holds {type(values).__name__}, not a mapping; {hint}")
    for name in needed:
        if name not in values:
            raise UserError(f"{path} is damaged: it has no {name!r}; {hint}")
    return values


def disk_is_full(error: BaseException) -> bool:
    """Whether ``error``, of any library's making, says that there is no room on the disk."""
    return any(words in str(error) for words in ("No space left", "Disk quota exceeded", "os error 28"))


def require_readable(folder: str | os.PathLike, argument: str) -> None:
    """Raise :class:`UserError` naming ``argument`` unless ``folder`` is one and can be listed: one that cannot be looks
    empty to a search."""
    try:
        os.listdir(folder)
    except OSError as error:
        raise UserError(f"{argument}: cannot read the folder {str(folder)!r}: {error.strerror or error}") from error


def require_writable(folder: str | os.PathLike, argument: str) -> None:
    """Prove that a file can be written in ``folder``, which need not be there yet, or raise :class:`UserError` naming
    ``argument``. Nothing is made: a command that is refused after this leaves no empty folder behind."""
    try:
        with tempfile.TemporaryFile(dir=_nearest(Path(folder).absolute())) as file:
            file.write(b"petx")
    except OSError as error:
        raise UserError(f"{argument}: cannot write in {str(folder)!r}: {error.strerror or error}") from error


def _nearest(folder: Path) -> Path:
    """``folder``, or the nearest one above it that is there; OSError if it cannot be made below that."""
    try:
        os.stat(folder)
    except FileNotFoundError:
        if folder.is_symlink():  # to nothing
            raise
        return _nearest(folder.parent)
    return folder
