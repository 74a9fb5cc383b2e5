"""Change aesthetic/ in one place, run tests that reach it, and see whether one fails: a seeded sample of mutants.

mutmut does it, as pyproject.toml says, in .cog/mutants: a copy of the files that git knows. Afterwards, in that folder,
`mutmut run NAME...` tests single mutants again, and `mutmut show NAME` says what they change.
"""

import argparse
import collections
import itertools
import os
import random
import shutil
import subprocess
from pathlib import Path

from mutmut.__main__ import cli, collect_or_load_stats, collect_source_file_mutation_data, create_mutants
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.state import state
from mutmut.stats import save_stats, status_by_exit_code
from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, setup_source_paths
from mutmut.workers.isolation import get_mutant_runner

ROOT = Path(__file__).parent.parent
WORK = ROOT / ".cog" / "mutants"
KILLED = {"killed", "timeout", "segfault"}

# Python runs this first in the programs that tests start: there, mutmut can't note which functions a test reaches.
NO_STATISTICS = """
import os

if os.environ.get("MUTANT_UNDER_TEST") == "stats":
    del os.environ["MUTANT_UNDER_TEST"]
"""


def copy_checkout() -> None:
    """Make WORK a fresh copy of what git tracks or would track, and go there."""
    shutil.rmtree(WORK, ignore_errors=True)
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (WORK / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, WORK / name)
    os.chdir(WORK)
    mutated = WORK / "mutants"  # mutmut's folder: tests and mutated code
    mutated.mkdir()
    os.environ["PYTHONPATH"] = str(mutated)
    (mutated / "sitecustomize.py").write_text(NO_STATISTICS, encoding="utf-8")


def sample(seed: int, count: int) -> list[str]:
    """Names of mutants, drawn from all that there are."""
    copy_src_dir()
    copy_also_copy_files()
    setup_source_paths()
    create_mutants(1)
    names = sorted(name for _, name, _ in collect_source_file_mutation_data(mutant_names=())[0])
    print(f"{count} of {len(names)} mutants, seed {seed}")
    return random.Random(seed).sample(names, count)  # noqa: S311


def keep_near_tests(seconds: float) -> None:
    """Find out which tests reach a function; keep its module's, its room's, then the quickest, for so many seconds."""
    collect_or_load_stats(get_mutant_runner())
    durations = state().duration_by_test
    for function, tests in state().tests_by_mangled_function_name.items():
        room, module = ["", *function.split(".")][-3:-1]
        far = {test: (f"/test_{module}.py" not in test, f"/{room}/" not in test, durations[test]) for test in tests}
        near = sorted(tests, key=far.__getitem__)
        ends = itertools.accumulate(durations[test] for test in near)
        tests.difference_update([test for test, end in zip(near[1:], ends, strict=False) if end > seconds])
    save_stats()


def report(names: list[str]) -> None:
    """Print what each mutant changes that no test noticed, and how many ended how."""
    mutants, _ = collect_source_file_mutation_data(mutant_names=names)
    outcomes = {name: status_by_exit_code[code] for _, name, code in mutants}
    for file, name, _ in mutants:
        if outcomes[name] not in KILLED:
            print(f"\n{outcomes[name]}: {name}\n{get_diff_for_mutant(name, path=file.path)}")
    print("\n" + ", ".join(f"{number} {outcome}" for outcome, number in collections.Counter(outcomes.values()).items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="script/mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=20, help="of tests for each mutant")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tested at the same time")
    options = parser.parse_args()
    copy_checkout()
    names = sample(options.seed, options.count)
    keep_near_tests(options.seconds)
    cli.main(["run", "--max-children", str(options.jobs), *names], standalone_mode=False)
    report(names)
