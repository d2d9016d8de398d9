"""What the pages have in common: templates, escaped by default, and the words about the machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pela_vl.report.figures import duration
from pela_vl.report.style import CSS


@dataclass(frozen=True)
class Figure:
    """A drawing under its title, with a subtitle or "".

    Attributes:
        title: of the drawing.
        drawing: an SVG element, in which the charts have escaped all text.
        subtitle: a second line.
    """

    title: str
    drawing: str
    subtitle: str = ""


def render_page(template: str, command: str, seconds: float, machine: Mapping[str, object], **values: Any) -> str:
    """A page as text: one HTML file that needs nothing but itself.

    Args:
        template: A file of templates/.
        command: What was typed.
        seconds: That it took.
        machine: cpu and cores; anything else is printed as it stands.
        values: What the template names.
    """
    shown = {name: str(value) for name, value in machine.items()}
    cpu, cores = shown.pop("cpu", "CPU unknown"), shown.pop("cores", "?")
    versions = ", ".join(f"{name} {value}" for name, value in shown.items())
    templates = Environment(loader=PackageLoader("pela_vl.report"), autoescape=True, undefined=StrictUndefined)
    footer = {"command": command, "duration": duration(seconds), "cpu": cpu, "cores": cores, "versions": versions}
    return templates.get_template(template).render(css=CSS, footer=footer, **values)
