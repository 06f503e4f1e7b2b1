"""Render the notebooks to HTML in _docs, with the signatures that `show_doc` makes, as `nbdev-docs` does but without
Quarto. Nothing is loaded from a network"""
import ast,re,shutil,textwrap
from html import escape
from itertools import groupby
from pathlib import Path
from fastcore.basics import AttrDict
from fastcore.nbio import mk_cell, nb2str, read_nb
from fastcore.script import call_parse
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbdev.config import get_config, nbpath2html
from nbdev.frontmatter import nb_frontmatter
from nbdev.serve import proc_nbs
from nbformat import reads
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from traitlets.config import Config

frame = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - fastfold</title><link rel="icon" href="data:,"><link rel="stylesheet" href="style.css"></head>
<body><details class="nav"><summary>Contents</summary><nav>{nav}</nav></details>
<main>{body}</main></body></html>
"""

def html_links(
    src:str, # Markdown
) -> str: # the same, with each link to a notebook here turned into one to its page
    "Pages lie side by side in _docs, whether a link was written in the top directory or in nbs/"
    src = re.sub(r'\]\((?:[\w.]+/)*([\w.]+\.ipynb)', lambda m: f'](./{nbpath2html(m[1]).name}', src)
    src = re.sub(r'\]\(#(\w)', lambda m: f'](#{m[1].upper()}', src) # headings keep their capital here, not on GitHub
    return re.sub(r'\[([^\]]+)\]\((?:nbs|[\w/]+\.md)\)', r'`\1`', src) # what is no notebook has no page

def documented(
    nb, # notebook as nbdev processed it
) -> set[str]: # headings
    "What `show_doc` has an entry for"
    mds = [''.join(o.get('data', {}).get('text/markdown', '')) for c in nb.cells for o in c.get('outputs', [])]
    return {m[1] for o in mds if (m := re.search(r'^### (.+)$', o, flags=re.M))}

def doc_links(
    src:str, # Markdown
    page:str, # where it stands
    shown:dict[str,set[str]], # page -> what is documented there
) -> str: # the same, with nbdev's links to names leading to their entries
    """nbdev takes every word in backticks that is a name anywhere for that name; a plain word such as `fold` means it
    only on the page that has it"""
    def link(m):
        name,to = m[1],m[2]
        at = next((o for o in (name, name.split('.')[-1]) if o in shown.get(to, ())), None)
        return f'[`{name}`]({to}#{at})' if at and (to==page or not re.fullmatch('[a-z]+', name)) else f'`{name}`'
    return re.sub(r'\[`([\w.]+)`\]\(/(?:\w+/)*([\w.]+\.html)#[^)]*\)', link, src)

def mathml(
    src:str, # Markdown with TeX between dollars
) -> str: # the same with MathML, which browsers show by themselves
    "Code is left alone: there a dollar is a dollar. latex2mathml knows `aligned` by the name of `align*` only"
    def block(m):
        tex = m[1].strip().replace('{aligned}', '{align*}')
        return f'<div class="math">{convert(tex, display="block")}</div>'
    def formulas(s):
        s = re.sub(r'\$\$(.+?)\$\$', block, s, flags=re.S)
        return re.sub(r'\$([^$]+)\$', lambda m: convert(m[1]), s)
    return ''.join(s if i%2 else formulas(s) for i,s in enumerate(re.split(r'(```.*?```|`[^`]*`)', src, flags=re.S)))

def narrow(
    line:str, # of a signature
    width:int=100, # characters that a page has room for
) -> str: # one line or more
    "Put a comment under the parameter that it is about, if there is no room beside it"
    code,_,comment = line.partition(' # ')
    if len(line)<=width or not comment: return line
    indent = ' '*8 + '# '
    return code + '\n' + textwrap.fill(comment, width, initial_indent=indent, subsequent_indent=indent)

def signature(
    md:str, # What `show_doc` wrote
) -> str: # as it is shown
    """Without the attributes that only Quarto reads, with short names of types, with no line too long to be shown, and
    with links to the source here"""
    md = re.sub(r'\{target=.*?\}', '', md)
    md = re.sub(r'\[source\]\([^)]*/(\w+)\.py#L(\d+)\)', r'<a class="source" href="\1.py.html#L-\2">source</a>', md)
    md = re.sub(r'\b(?:__main__|torch|typing|fastfold(?:\.\w+)+)\.(?=[A-Z])', '', md)
    md = re.sub(r'\btorch\.nn\.modules\.\w+\.', 'nn.', md)
    return '\n'.join(map(narrow, md.splitlines()))

def fields(
    src:str, # of a module
) -> dict[str,str]: # class -> a table in HTML, since there is no Markdown for code with a `|` in a cell
    "What the fields of each data class and named tuple mean, which `show_doc` leaves out"
    res,lines = {},src.splitlines()
    def row(name, kind, what):
        return f'<tr><td><code>{name}</code></td><td><code>{escape(kind)}</code></td><td>{told(what)}</td></tr>'
    def told(what): return re.sub('`(.+?)`', r'<code>\1</code>', escape(what))
    for c in ast.parse(src).body:
        if not isinstance(c, ast.ClassDef): continue
        known = [(f.target.id, ast.unparse(f.annotation), lines[f.end_lineno-1].partition(' # ')[2])
            for f in c.body if isinstance(f, ast.AnnAssign)]
        rows = [row(*o) for o in known if o[2]]
        if rows: res[c.name] = f'\n\n<table><tr><th>field</th><th>type</th><th></th></tr>{"".join(rows)}</table>\n'
    return res

def recorded(
    cells:list, # of a notebook as nbdev processed it
) -> list: # those to show
    """Leave out each section whose cells for a GPU, or slow ones, have no stored output: it would be a question without
    an answer. A section is what stands under a heading of the second level"""
    sections = [[]]
    for c in cells:
        if c.cell_type=='markdown' and c.source.startswith('## '): sections.append([])
        sections[-1].append(c)
    def is_shown(section):
        skipped = [c for c in section if {'cuda','slow'} & c.directives.keys()]
        return not skipped or any(c.outputs for c in skipped)
    return [c for s in sections if is_shown(s) for c in s]

def prep(
    nb, # notebook as nbdev processed it for Quarto
    page:str, # what its page is called
    shown:dict[str,set[str]], # page -> what is documented there
    tables:dict[str,str], # class -> what its fields mean, for those of this page
):      # notebook that nbconvert can render: an nbformat node
    """Leave out the front matter and the directives, which only Quarto reads, and do what they say: `echo: false` hides
    the source of a cell, and `fig-alt` says what its picture shows"""
    fm = nb_frontmatter(nb)
    cells = [mk_cell(f"# {fm.get('title','')}\n\n> {fm.get('description','')}", 'markdown')]
    for c in recorded(nb.cells):
        if c.cell_type=='raw': continue
        alt = c.directives.get('fig-alt')
        tags = ['no-input'] if c.directives.get('echo')=='false' else []
        c.remove_directives()
        c.pop('has_sd', None)   # nbdev's mark on a `show_doc` cell, which nbformat refuses
        c.metadata = AttrDict(tags=tags, **(dict(alt=alt) if alt else {}))
        if c.cell_type=='markdown': c.source = mathml(doc_links(html_links(c.source), page, shown))
        for o in c.get('outputs', []):
            if md := ''.join(o.get('data', {}).get('text/markdown', '')):
                entry = re.search(r'^### (.+)$', md, flags=re.M)
                md += tables.get(entry[1], '') if entry else ''
                o['data'] = {'text/markdown': doc_links(html_links(signature(md)), page, shown)}
        cells.append(c)
    nb.cells = cells
    nb.metadata['language_info'] = dict(name='python')
    return reads(nb2str(nb), as_version=4)

guide = ['index', 'tutorial.pets', 'tutorial.learner', 'questions', 'algebra', 'adding', 'reasons', 'merging',
    'deployment', 'benchmarks', 'peers'] # in the order to read them; pages that aren't named here come last
parts = dict(guide='Guide', _proc='API', core='core', merge='merge', report='report', training='training', lab='lab')

def part(f:Path) -> str: # 'Guide', 'API' for the rooms that users call, or the name of another part
    "The part of the site that the notebook `f` belongs to: its directory, but for the first page of all"
    return 'Guide' if f.stem in guide else parts[f.parent.name]

def page_order(f:Path) -> tuple: # sort key
    "The guide comes first, then the API in the order of its notebooks"
    place = guide.index(f.stem) if f.stem in guide else len(guide)
    return [*parts.values()].index(part(f)),place,f.stem

def nav_html(
    groups:dict[str,dict[str,str]], # part -> page -> its title
    here:str, # page
) -> str:
    "Links to all pages: those for users in sight, and each part of the inside folded, but for the one that is shown"
    def links(titles):
        return ''.join(f'<a href="{p}"{" aria-current=page"*(p==here)}>{escape(t)}</a>' for p,t in titles.items())
    def group(name, titles):
        if name in ('Guide', 'API'): return f'<h2>{name}</h2>{links(titles)}'
        return f'<details{" open"*(here in titles)}><summary>{name}</summary>{links(titles)}</details>'
    return ''.join(group(*o) for o in groups.items())

def style() -> str:
    "The style sheet, with the colours of code in light and in dark"
    light,dark = (HtmlFormatter(style=s).get_style_defs('.highlight') for s in ('default', 'github-dark'))
    own = Path(__file__).with_name('docs.css').read_text(encoding='utf-8')
    return f'{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}'

@call_parse
def main():
    "Render the notebooks to HTML in _docs"
    cfg = get_config()
    cfg.doc_path.mkdir(exist_ok=True)
    export = HTMLExporter(template_name='basic', exclude_input_prompt=True, exclude_output_prompt=True,
        config=Config(TagRemovePreprocessor=dict(enabled=True, remove_input_tags=['no-input']))).from_notebook_node
    nbs = sorted(proc_nbs(n_workers=0).rglob('*.ipynb'), key=page_order)
    pages = {nbpath2html(f).name: read_nb(f) for f in nbs}
    shown = {p: documented(nb) for p,nb in pages.items()}
    titles = {p: nb_frontmatter(nb)['title'] for p,nb in pages.items()}
    groups = {k: {nbpath2html(f).name: titles[nbpath2html(f).name] for f in fs} for k,fs in groupby(nbs, part)}
    def write(page, title, body):
        html = frame.format(title=escape(title), nav=nav_html(groups, page), body=body)
        (cfg.doc_path/page).write_text(html, encoding='utf-8')
    srcs = {f.name: f.read_text(encoding='utf-8') for f in sorted(cfg.lib_path.rglob('[!_]*.py'))}
    for page,nb in pages.items():
        write(page, titles[page], export(prep(nb, page, shown, fields(srcs.get(page.replace('.html', '.py'), ''))))[0])
    for n,src in srcs.items():
        write(f'{n}.html', n, f'<h1>{n}</h1>' + highlight(src, PythonLexer(), HtmlFormatter(lineanchors='L')))
    (cfg.doc_path/'style.css').write_text(style(), encoding='utf-8')
    images = cfg.config_path/'images'
    if images.exists():
        shutil.copytree(images, cfg.doc_path/'images', dirs_exist_ok=True, ignore=shutil.ignore_patterns('.*'))
    print(f'{len(nbs)} pages: {(cfg.doc_path/"index.html").relative_to(cfg.config_path)} is the first')
