"""The README and the pages of docs/: their Python blocks run, links lead somewhere, figures are those of the committed results."""

import os
import re
from pathlib import Path

import interpreters
import pytest
import torch
import torch.nn.functional as F

import vae_fast

ROOT = Path(__file__).resolve().parent.parent
GUIDES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
BLOCKS = {page: re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE) for page in GUIDES}
# What a hosting service shows on its own, outside the site, whose links the build of the site checks.
LINKED = sorted(
    {"README.md", "examples/README.md", *(str(p.relative_to(ROOT)) for p in [*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md")])}
)


def namespace():
    """What a reader has at hand: a VAE's tensors, of a batch of images."""
    torch.manual_seed(0)
    mu, logvar = (torch.randn(4, 20, requires_grad=True) for _ in range(2))
    recon_x = torch.rand(4, 784, requires_grad=True)
    return {"torch": torch, "F": F, "vae_fast": vae_fast, "x": torch.rand(4, 1, 28, 28), "recon_x": recon_x, "mu": mu, "logvar": logvar}


def test_there_are_blocks():
    assert sum(map(len, BLOCKS.values())) >= 20


@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks])
def test_the_blocks_of_a_page_run_in_order(page):
    names = namespace()
    losses = {}
    for index, block in enumerate(BLOCKS[page]):
        exec(compile(block, f"{page} block {index}", "exec"), names)
        if block.startswith(("# before", "# after")):
            losses[block.split(None, 2)[1]] = names["loss"].item()
    if losses:
        assert losses["after"] == pytest.approx(losses["before"], rel=1e-6)


def test_both_pages_of_the_swap_show_it():
    for page in ("README.md", "docs/swap-in.md"):
        assert [block.split("\n")[0] for block in BLOCKS[page][:2]] == ["# before", "# after"], page


def anchors(text):
    """The headings of a page as its links name them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://")):
            name, _, anchor = target.partition("#")
            path = (ROOT / page).parent / name if name else ROOT / page
            assert path.exists(), f"{page} links to {target}"
            assert not anchor or anchor in anchors(path.read_text()), f"{page} links to {target}"


def test_every_page_of_docs_is_in_the_menu():
    found = re.findall(r"^ +- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(found) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").glob("**/*.md"))


def test_every_public_function_is_in_the_reference_and_in_the_table():
    reference, table = ((ROOT / "docs" / page).read_text() for page in ("api/functions.md", "functions.md"))
    for name in vae_fast.functional.__all__:
        assert re.search(rf"^::: vae_fast\.(functional\.{name}\.)?{name}$", reference, flags=re.MULTILINE), name
        if name.islower() and name != "checks":
            assert f"`{name}(" in table or f"`{name}`" in table, name


def test_figures_are_those_of_the_results():
    done = interpreters.run(ROOT / "benchmarks" / "readme.py", "--check", environment=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def test_the_front_page_is_a_screen_and_shows_nothing_old():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 100
    assert not re.search(r"\bstale\b|changed since", text, flags=re.IGNORECASE)
    assert text.count("\n| ") - 1 <= 5  # a head and at most four rows, beside the rule


def test_the_citation_is_of_this_version():
    assert f"\nversion: {vae_fast.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1].startswith(vae_fast.__version__)


def test_pages_of_trained_models_are_linked_and_made_by_this_explorer():
    """A page is its model's data in the explorer's own HTML, whatever that is now."""
    folder = ROOT / "docs" / "explore"
    kept = sorted(path.name for path in folder.iterdir())
    for page in ("examples/README.md", "docs/models.md"):
        assert sorted(re.findall(r"\]\((?:\.\./docs/)?explore/(\S+)\)", (ROOT / page).read_text())) == kept
    assert {f"{name}.html" for name in ("mnist-2", "mnist-10", "mnist-20", "mnist-50", "frey-2", "frey-20")} <= set(kept)
    template = (ROOT / "vae_fast" / "plots" / "explorer.html").read_text(encoding="utf-8")
    for name in kept:
        group, latent = name.removesuffix(".html").split("-")
        before, after = template.replace("<!--TITLE-->", f"{group}, {latent} latent dimensions").split("<!--DATA-->")
        page = (folder / name).read_text(encoding="utf-8")
        assert page.startswith(before)
        assert page.endswith(after)
