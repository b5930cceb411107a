"""What works on files works without torch, whose import takes seconds and half a gigabyte."""

import subprocess
import sys

SCRIPT = """
import sys
import labkit as lk

base, adapter, folder = sys.argv[1:]
plan = lk.plan(base, adapter, "0,0.5,1x2")
repr(plan)
plan.write(f"{folder}/merged", progress=False, device="cpu")
lk.verify(f"{folder}/merged", progress=False, device="cpu")
lk.bake(adapter, "0,0.5,1x2", f"{folder}/baked")
lk.survey(base, adapter, "0,0.5,1x2", progress=False)
lk.survival(base, adapter, "0,0.5,1x2", progress=False)
lk.overlap([adapter, f"{folder}/baked"], base)
print(*({"torch", "transformers", "peft"} & set(sys.modules)))
"""


def test_files_need_no_torch(tiny_base, tiny_adapter, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tiny_base), str(tiny_adapter), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr
