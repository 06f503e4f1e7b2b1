"""Every notebook runs from top to bottom, each in a process of its own and in a copy of the project, so that none
leaves files behind"""
import multiprocessing,os,sys
from pathlib import Path
import pytest

folder = Path(__file__).resolve().parent.parent/'nbs'
nbs = sorted(o.relative_to(folder) for o in folder.rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)

@pytest.fixture(scope='module')
def project(copy_to, tmp_path_factory): return copy_to(tmp_path_factory.mktemp('nbs')/'fastfold')

@pytest.fixture(scope='session')
def processes():
    """What makes processes. On Linux each is the fork of one that has imported PyTorch and has done nothing else, which
    saves seconds for every notebook. Not fastai: it changes `Tensor`, and some notebooks must do without that"""
    can_fork = sys.platform=='linux'
    res = multiprocessing.get_context('forkserver' if can_fork else 'spawn')
    if can_fork: res.set_forkserver_preload(['nbdev.test', 'pandas', 'torchvision'])
    return res

def run(nb, project, log):
    "`nbdev-test` in this process, with all that it prints in a file"
    out = os.open(log, os.O_WRONLY|os.O_CREAT)
    for stream in (1, 2): os.dup2(out, stream)
    os.environ['PYTHONPATH'] = str(project)
    os.chdir(project)
    sys.path.insert(0, str(project))
    multiprocessing.set_start_method(None, force=True) # for loaders in notebooks: as anywhere else
    from nbdev.test import nbdev_test
    nbdev_test(project/'nbs'/nb)

@pytest.mark.parametrize('nb', nbs, ids=[o.stem for o in nbs])
def test_notebook(nb, project, processes, tmp_path):
    "`nbdev-test` leaves out the cells that `tst_flags` names, and prints the cell that failed"
    log = tmp_path/'log'
    process = processes.Process(target=run, args=(nb, project, log))
    process.start()
    process.join()
    said = log.read_text(encoding='utf-8')
    if process.exitcode or 'Success.' not in said: pytest.fail(said, pytrace=False)
