"""Runs benchmarks one after the other, each with the interpreter of its peers at hand.

python -m tests.benchmarks [NAME …]    all, or some of: bm25, embedding, reimagen, sampling, search, service, training,
                                       vectors
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
NAMES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def main() -> None:
    """Exits with the first benchmark's failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *NAMES], help=", ".join(NAMES))
    for name in parser.parse_args().names or NAMES:
        print(f"== {name}", file=sys.stderr, flush=True)
        subprocess.run(
            [sys.executable, "-m", f"tests.benchmarks.bench_{name}"], cwd=REPOSITORY, env=_environment(name), check=True
        )


def _environment(name: str) -> dict[str, str]:
    peer = REPOSITORY / ".venv-peers" / ("bm25" if name == "bm25" else "clip") / "bin" / "python"
    found = {"PEER_PYTHON": str(peer)} if peer.exists() else {}
    return {"RAY_worker_niceness": "0", **found, **os.environ}


if __name__ == "__main__":
    main()
