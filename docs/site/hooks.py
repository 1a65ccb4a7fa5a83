"""What the site has besides docs/: pages of the repository, the reference, and links between all.

Pages link to files as the repository has them, so that they can be read there. On the site a link
to a page leads to that page, and one to any other file is its path, without a link.
"""

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

from imagen_jax.commands import main
from imagen_jax.training.config import CONFIGS, config_names

ROOT = Path(__file__).parents[2]
LOG = logging.getLogger("mkdocs.hooks")
# Pages that stand elsewhere in the repository, and where they are on the site.
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "web/README.md": "web.md",
    "imagen_jax/pretrained/icons/README.md": "icons.md",
    "imagen_jax/pretrained/icons-fast/README.md": "icons-fast.md",
    "imagen_jax/pretrained/icons/LICENSES.md": "icons-licenses.md",
}
# Of the package, in the order of the reference; the others belong to one command each.
ROOMS = (
    *("pipeline", "cascade", "diffusion", "models", "text", "images", "data", "training"),
    *("evaluation", "human_study", "convert", "compress", "export", "planning", "storage"),
    *("sweeps", "bulk_data", "devices", "typing"),
)
# What a reader is likely to look for in a room.
FIRST = {
    "pipeline": "Begin with [load_model][imagen_jax.pipeline.loading.load_model] and "
    "[list_models][imagen_jax.pipeline.shipped.list_models], which `imagen_jax` has itself; "
    "[generate_images][imagen_jax.pipeline.pipeline.Pipeline.generate_images], "
    "[edit][imagen_jax.pipeline.pipeline.Pipeline.edit], "
    "[inpaint][imagen_jax.pipeline.pipeline.Pipeline.inpaint] and "
    "[upscale][imagen_jax.pipeline.pipeline.Pipeline.upscale].\n\n",
}
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)]*)?\)")
NAME = re.compile(r"`(imagen_jax(?:\.\w+)+)`")


def commands_page() -> str:
    """What `imagen-jax VERB --help` says, of all verbs."""
    parts = ["# Commands", f"```text\n{main.overview()}\n```"]
    for verb in main.verbs():
        parser = main.module(verb).parser()
        parser.prog = f"imagen-jax {verb}"
        parts.append(f"## {verb}\n\n```text\n{parser.format_help()}```")
    return "\n\n".join(parts)


def configs_page() -> str:
    """The docstrings of all configs."""
    parts = ["# Configs", "What `--config NAME` may be, besides a Python file of your own."]
    for name in config_names():
        text = (CONFIGS / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
        parts.append(f"## {name}\n\n{text}")
    return "\n\n".join(parts)


def to_reference(found):
    """A link to where a name is explained: a constant's file explains it."""
    name = found[1]
    module, _, last = name.rpartition(".")
    return f"[`{name}`][{module if last.isupper() else name}]"


def on_files(files, config):
    pages = {
        place: FRONT_MATTER.sub("", (ROOT / path).read_text(encoding="utf-8"))
        for path, place in ELSEWHERE.items()
    }
    pages |= {"reference/commands.md": commands_page(), "reference/configs.md": configs_page()}
    for room in ROOMS:
        first = FIRST.get(room, "")
        pages[f"reference/{room}.md"] = f"# imagen_jax.{room}\n\n{first}::: imagen_jax.{room}\n"
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    place = page.file.src_uri
    path = next((x for x, there in ELSEWHERE.items() if there == place), f"docs/{place}")

    def link(found):
        image, text, target, anchor = found.groups()
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        there = ELSEWHERE.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(there) is None:
            if not (ROOT / target).exists():
                LOG.warning("%s leads to %s, which is not there", path, target)
            return text
        there = posixpath.relpath(there, posixpath.dirname(place))
        return f"{image}[{text}]({there}{anchor or ''})"

    if place.startswith("reference/"):
        return markdown
    markdown = LINK.sub(link, markdown)
    return NAME.sub(to_reference, markdown) if place == "paper.md" else markdown
