"""Every notebook runs from top to bottom, each in a process of its own and in a copy of the project, so that none
leaves files behind"""
import os,subprocess,sys
from pathlib import Path
import pytest

folder = Path(__file__).resolve().parent.parent/'nbs'
nbs = sorted(o.relative_to(folder) for o in folder.rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)

@pytest.fixture(scope='module')
def project(copy_to, tmp_path_factory): return copy_to(tmp_path_factory.mktemp('nbs')/'fastfold')

@pytest.mark.parametrize('nb', nbs, ids=[o.stem for o in nbs])
def test_notebook(nb, project):
    "`nbdev-test` leaves out the cells that `tst_flags` names, and prints the cell that failed"
    cmd,env = [Path(sys.executable).parent/'nbdev-test', f'nbs/{nb}'],{**os.environ, 'PYTHONPATH':str(project)}
    res = subprocess.run(cmd, cwd=project, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if res.returncode or 'Success.' not in res.stdout: pytest.fail(res.stdout, pytrace=False)
