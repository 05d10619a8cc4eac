"""The graph of stages: read from dvc.yaml, drawn as SVG in layers from top to bottom."""

from collections.abc import Iterable, Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from scratchlm.run.pipeline import paths, resolved_stages

BOX_WIDTH, BOX_HEIGHT = 152, 32
LAYER_HEIGHT = 68  # from the top of one layer to the top of the next
LANE_WIDTH = 8  # of an arrow that passes a layer
GAP = 20  # between neighbours
SWEEPS = 8  # down and up again, to reduce crossings


class Stage(NamedTuple):
    """sources: the stages whose outputs this one reads, in the order of dvc.yaml."""

    name: str
    description: str
    sources: tuple[str, ...]


def stage_graph(pipeline: Mapping[str, Any], params: Mapping[str, Any]) -> list[Stage]:
    """Return the stages of a parsed dvc.yaml, `${...}` and `foreach` resolved, under the names that `dvc dag` uses.

    A stage reads from another if one of its dependencies equals, contains or lies in an output of the other.
    The stage `code` is left out, because all others read from it.
    """
    resolved = {name: stage for name, stage in resolved_stages(pipeline, params).items() if name != "code"}
    inputs = {name: _paths(stage, "deps") for name, stage in resolved.items()}
    outputs = {name: _paths(stage, "outs", "metrics", "plots") for name, stage in resolved.items()}

    def reads(name: str, other: str) -> bool:
        return name != other and any(_overlap(path, output) for path in inputs[name] for output in outputs[other])

    return [
        Stage(name, stage.get("desc", ""), tuple(other for other in resolved if reads(name, other)))
        for name, stage in resolved.items()
    ]


def drawn_edges(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """Return the edges that no longer path implies (the transitive reduction), which are those in the picture."""
    ancestors: dict[str, set[str]] = {}
    for name, sources in _in_order(stages):
        ancestors[name] = {*sources, *(older for source in sources for older in ancestors[source])}
    return [
        (source, stage.name)
        for stage in stages
        for source in stage.sources
        if not any(source in ancestors[other] for other in stage.sources)
    ]


def graph_svg(stages: Sequence[Stage]) -> Markup:
    """Return the picture: boxes in layers, each below everything that it reads from, joined by arrows."""
    layers, routes = _layers(stages)
    centres = _centres(layers)
    for route in routes:
        _straighten(route, layers, centres)
    width = max(x for x, _ in centres.values()) + BOX_WIDTH / 2 + 2
    height = len(layers) * LAYER_HEIGHT - (LAYER_HEIGHT - BOX_HEIGHT) + 4
    parts = [_arrow([centres[point] for point in route]) for route in routes]
    parts += [_box(stage, *centres[(stage.name,)]) for stage in stages]
    return Markup(
        '<svg class="graph" role="img" aria-label="graph of stages" viewBox="0 0 {w:.0f} {h:.0f}" '
        'style="width:{w:.0f}px; min-width:{least:.0f}px"><defs><marker id="arrowhead" viewBox="0 0 8 8" '
        'refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z"/></marker></defs>{parts}</svg>'
    ).format(w=width, least=0.85 * width, h=height, parts=Markup("").join(parts))


_Point = tuple[str, ...]  # (stage,), or (source, target, layer) where an arrow passes a layer


def _layers(stages: Sequence[Stage]) -> tuple[list[list[_Point]], list[list[_Point]]]:
    """Return the points of each layer, ordered so that few arrows cross, and the points that each arrow joins.

    Source: Sugiyama et al. 1981, with barycentres.
    """
    depths: dict[str, int] = {}
    for name, sources in _in_order(stages):
        depths[name] = 1 + max((depths[source] for source in sources), default=-1)
    layers: list[list[_Point]] = [[] for _ in range(1 + max(depths.values()))]
    for stage in stages:
        layers[depths[stage.name]].append((stage.name,))
    routes = []
    for source, target in drawn_edges(stages):
        passed = [(source, target, str(depth)) for depth in range(depths[source] + 1, depths[target])]
        for point in passed:
            layers[int(point[2])].append(point)
        routes.append([(source,), *passed, (target,)])
    joined = [pair for route in routes for pair in zip(route, route[1:], strict=False)]
    for _ in range(SWEEPS):
        for i in range(1, len(layers)):
            _sort_by_neighbours(layers[i], layers[i - 1], {(b, a) for a, b in joined})
        for i in range(len(layers) - 1, 0, -1):
            _sort_by_neighbours(layers[i - 1], layers[i], set(joined))
    return layers, routes


def _sort_by_neighbours(layer: list[_Point], fixed: list[_Point], joined: set[tuple[_Point, _Point]]) -> None:
    """Sort a layer by the mean index of each point's neighbours in the layer `fixed`."""
    own = {point: index for index, point in enumerate(layer)}

    def barycentre(point: _Point) -> float:
        indices = [index for index, other in enumerate(fixed) if (point, other) in joined]
        return sum(indices) / len(indices) if indices else own[point]

    layer.sort(key=barycentre)


def _centres(layers: Sequence[Sequence[_Point]]) -> dict[_Point, tuple[float, float]]:
    """Return the centre (x, y) of every point; each layer is centred on the widest."""
    widths = [sum(map(_width, layer)) + GAP * (len(layer) - 1) for layer in layers]
    centres = {}
    for row, layer in enumerate(layers):
        x = (max(widths) - widths[row]) / 2 + 2
        for point in layer:
            centres[point] = (x + _width(point) / 2, row * LAYER_HEIGHT + BOX_HEIGHT / 2 + 2)
            x += _width(point) + GAP
    return centres


def _straighten(route: Sequence[_Point], layers: Sequence[Sequence[_Point]], centres: dict[_Point, Any]) -> None:
    """Move an arrow's points to one x if it then touches nothing in the layers that it passes."""
    lane = route[1:-1]
    others = [other for point in lane for other in layers[int(point[2])] if other != point]
    for x in [centres[point][0] for point in (route[0], route[-1], *lane)]:
        if all(abs(centres[other][0] - x) >= (_width(other) + LANE_WIDTH) / 2 + GAP / 2 for other in others):
            centres.update({point: (x, centres[point][1]) for point in lane})
            return


def _width(point: _Point) -> int:
    return BOX_WIDTH if len(point) == 1 else LANE_WIDTH


def _arrow(points: Sequence[tuple[float, float]]) -> Markup:
    """Draw from the bottom of the first box to the top of the last, vertical beside the boxes between them."""
    half = BOX_HEIGHT / 2
    x, y = points[0][0], points[0][1] + half
    path = f"M{x:.1f} {y:.1f}"
    for i, (next_x, centre) in enumerate(points[1:], start=2):
        top = centre - half
        middle = (y + top) / 2
        path += f"C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {top:.1f}"
        x, y = next_x, top
        if i < len(points):
            y = centre + half
            path += f"V{y:.1f}"
    return Markup('<path class="arrow" marker-end="url(#arrowhead)" d="{}"/>').format(path)


def _box(stage: Stage, x: float, y: float) -> Markup:
    return Markup(
        '<g class="stage"><title>{title}</title><rect x="{left:.1f}" y="{top:.1f}" width="{w}" height="{h}" rx="6"/>'
        '<text x="{x:.1f}" y="{base:.1f}">{name}</text></g>'
    ).format(
        title=stage.description,
        left=x - BOX_WIDTH / 2,
        top=y - BOX_HEIGHT / 2,
        w=BOX_WIDTH,
        h=BOX_HEIGHT,
        x=x,
        base=y + 4,
        name=escape(stage.name),
    )


def _in_order(stages: Sequence[Stage]) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Yield each stage's name and sources, after those of all its sources."""
    sources = {stage.name: stage.sources for stage in stages}
    return ((name, sources[name]) for name in TopologicalSorter(sources).static_order())


def _paths(stage: Mapping[str, Any], *kinds: str) -> list[PurePosixPath]:
    return [PurePosixPath(path) for kind in kinds for path in paths(stage.get(kind, []))]


def _overlap(a: PurePosixPath, b: PurePosixPath) -> bool:
    return a.is_relative_to(b) or b.is_relative_to(a)
