"Render the notebooks to HTML in _docs, with the signatures that `show_doc` makes, as `nbdev-docs` does but without Quarto"
import re,shutil
from fastcore.basics import AttrDict
from fastcore.nbio import mk_cell, nb2str, read_nb
from fastcore.script import call_parse
from nbconvert import HTMLExporter
from nbdev.config import get_config, nbpath2html
from nbdev.frontmatter import nb_frontmatter
from nbdev.serve import proc_nbs
from nbformat import reads
from traitlets.config import Config

def html_links(
    src:str, # Markdown
) -> str: # the same, with each link to a notebook here turned into one to its page
    "Pages lie side by side in _docs, whether a link was written in the top folder or in nbs/"
    return re.sub(r'\]\((?:nbs/)?([\w.]+\.ipynb)', lambda m: f'](./{nbpath2html(m[1]).name}', src)

def prep(
    nb, # notebook as nbdev processed it for Quarto
):      # notebook that nbconvert can render: an nbformat node
    "Leave out what only Quarto reads: the front matter, its directives and the attributes of links"
    fm = nb_frontmatter(nb)
    cells = [mk_cell(f"# {fm.get('title','')}\n\n> {fm.get('description','')}", 'markdown')]
    for c in nb.cells:
        if c.cell_type=='raw': continue
        tags = ['no-input'] if c.directives.get('echo')=='false' else []
        c.remove_directives()
        c.pop('has_sd', None)   # nbdev's mark on a `show_doc` cell, which nbformat refuses
        c.metadata = AttrDict(tags=tags)
        if c.cell_type=='markdown': c.source = html_links(c.source)
        for o in c.get('outputs', []):
            if md := o.get('data', {}).get('text/markdown'): o['data'] = {'text/markdown': re.sub(r'\{target=.*?\}', '', ''.join(md))}
        cells.append(c)
    nb.cells = cells
    nb.metadata['language_info'] = dict(name='python')
    return reads(nb2str(nb), as_version=4)

@call_parse
def main():
    "Render the notebooks to HTML in _docs"
    cfg = get_config()
    cfg.doc_path.mkdir(exist_ok=True)
    exporter = HTMLExporter(config=Config(TagRemovePreprocessor=dict(enabled=True, remove_input_tags=['no-input'])),
        exclude_input_prompt=True, exclude_output_prompt=True)
    for f in sorted(proc_nbs(n_workers=0).glob('*.ipynb')):
        page = cfg.doc_path/nbpath2html(f).name
        page.write_text(exporter.from_notebook_node(prep(read_nb(f)))[0], encoding='utf-8')
        print(page.relative_to(cfg.config_path))
    images = cfg.config_path/'images'
    if images.exists(): shutil.copytree(images, cfg.doc_path/'images', dirs_exist_ok=True, ignore=shutil.ignore_patterns('.*'))
