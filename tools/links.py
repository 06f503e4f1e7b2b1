"""Put working links in place of nbs/index.ipynb and nbs/images where git could make no symbolic links, as on Windows
without developer mode. There they are text files that hold a path. Hard links and junctions need no rights"""
import os,shutil,subprocess,sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def is_text(
    path:Path, # of what should be a link
) -> bool:
    "Is it the file that git writes in place of a link?"
    return path.is_file() and not path.is_symlink() and path.read_bytes()==f'../{path.name}'.encode()

def link(
    path:Path, # of the link
    target:Path, # where it leads; must exist
):
    "Make `path` the same as `target`, in a way that needs no rights"
    path.unlink()
    if target.is_file(): os.link(target, path)
    elif os.name=='nt':
        subprocess.run(['cmd', '/c', 'mklink', '/J', path, target], check=True, stdout=subprocess.DEVNULL)
    else: path.symlink_to(target)

def main() -> int:
    todo = [o for o in (root/'nbs/index.ipynb', root/'nbs/images') if is_text(o)]
    for o in todo:
        link(o, root/o.name)
        if shutil.which('git') and (root/'.git').exists(): # or git would take it for a change
            cmd = ['git', 'update-index', '--skip-worktree', o.relative_to(root).as_posix()]
            subprocess.run(cmd, cwd=root, check=True)
    linked = ', '.join(o.relative_to(root).as_posix() for o in todo)
    print(f'linked {linked}' if todo else 'the links are as they should be')
    return 0

if __name__=='__main__': sys.exit(main())
