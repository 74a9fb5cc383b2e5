"""How much memory a call takes at most, native libraries included, in a process of its own. Linux tells."""

import os
import subprocess
import sys
from pathlib import Path

from tests.snapshot import ROOT

PROGRAM = """
import sys
from pathlib import Path
{imports}

def memory(name):
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1])

path, before = Path(sys.argv[1]), memory("VmRSS:")
{call}
print(memory("VmHWM:") - before)
"""


def taken(path: Path, imports: str, call: str) -> int:
    """Bytes that a call takes at most, above its imports. Both are Python; `path` there is this one."""
    program = PROGRAM.format(imports=imports, call=call)
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    command: list[str | Path] = [sys.executable, "-c", program, path]
    return 1024 * int(subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, check=True).stdout)
