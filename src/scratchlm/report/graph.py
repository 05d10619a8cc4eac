"""The graph of stages: read from dvc.yaml, drawn as SVG in layers from top to bottom."""

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import PurePosixPath
from statistics import mean
from typing import Any, NamedTuple

from markupsafe import Markup

from scratchlm.run.pipeline import paths, resolved_stages

LEAST_BOX_WIDTH, BOX_HEIGHT = 152, 46
CHARACTER_WIDTH = 7.3  # of a stage's name
LAYER_HEIGHT = 84  # from the top of one layer to the top of the next
LANE_WIDTH = 8  # of an arrow that passes a layer
GAP = 20  # between neighbours
LEAST_SCALE = 0.92  # below it the graph scrolls in its box: its texts are 12.5 pixels, and then above 11


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

    def files(name: str, *kinds: str) -> list[PurePosixPath]:
        return [PurePosixPath(path) for kind in kinds for path in paths(resolved[name].get(kind, []))]

    def reads(name: str, other: str) -> bool:
        pairs = [(a, b) for a in files(name, "deps") for b in files(other, "outs", "metrics", "plots")]
        return name != other and any(a.is_relative_to(b) or b.is_relative_to(a) for a, b in pairs)

    return [
        Stage(name, stage.get("desc", ""), tuple(other for other in resolved if reads(name, other)))
        for name, stage in resolved.items()
    ]


def drawn_edges(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """Return the edges in the picture: without those that a longer path implies (the transitive reduction)."""
    sources = {stage.name: stage.sources for stage in stages}
    ancestors: dict[str, set[str]] = {}
    for name in TopologicalSorter(sources).static_order():
        ancestors[name] = {*sources[name], *(older for source in sources[name] for older in ancestors[source])}
    return [
        (source, name)
        for name in sources
        for source in sources[name]
        if not any(source in ancestors[other] for other in sources[name])
    ]


def graph_svg(stages: Sequence[Stage], results: Mapping[str, str]) -> Markup:
    """Return the picture: boxes in layers, each below everything that it reads from, joined by arrows.

    results: by stage, the text below its name; not every stage has one.
    """
    centres, routes = _layout(stages)
    width = max(centres[point][0] + _half(point) for point in centres) + 2
    height = max(y for _, y in centres.values()) + BOX_HEIGHT / 2 + 2
    parts = [_arrow([centres[point] for point in route]) for route in routes]
    parts += [_box(stage, results.get(stage.name, ""), centres[(stage.name,)]) for stage in stages]
    return Markup(
        '<svg class="graph" role="img" aria-label="graph of stages" viewBox="0 0 {w:.0f} {h:.0f}" '
        'style="width:{w:.0f}px; min-width:{least:.0f}px"><defs><marker id="arrowhead" viewBox="0 0 8 8" '
        'refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z"/></marker></defs>{parts}</svg>'
    ).format(w=width, least=LEAST_SCALE * width, h=height, parts=Markup("").join(parts))


_Point = tuple[str, ...]  # (stage,), or (source, target, layer) where an arrow passes a layer


def _layout(stages: Sequence[Stage]) -> tuple[dict[_Point, tuple[float, float]], list[list[_Point]]]:
    """Return the centre (x, y) of every point, and the points that each arrow joins.

    A layer's points are in the order of the means of their sources' x, and as near to them as their widths allow.
    Source: Sugiyama et al. 1981, with barycentres, one sweep.
    """
    edges = drawn_edges(stages)
    depths: dict[str, int] = {}
    for name in TopologicalSorter({stage.name: stage.sources for stage in stages}).static_order():
        depths[name] = 1 + max((depths[source] for source, target in edges if target == name), default=-1)
    layers: list[list[_Point]] = [[] for _ in range(1 + max(depths.values()))]
    for stage in stages:
        layers[depths[stage.name]].append((stage.name,))
    routes: list[list[_Point]] = []
    for source, target in edges:
        lane: list[_Point] = [(source, target, str(depth)) for depth in range(depths[source] + 1, depths[target])]
        for point in lane:
            layers[int(point[2])].append(point)
        routes.append([(source,), *lane, (target,)])
    joined = [pair for route in routes for pair in pairwise(route)]
    x: dict[_Point, float] = {}
    for layer in layers:
        wanted = {point: mean([x[above] for above, below in joined if below == point] or [0.0]) for point in layer}
        layer.sort(key=wanted.__getitem__)
        end = -float("inf")
        for point in layer:
            x[point] = max(wanted[point], end + GAP + _half(point))
            end = x[point] + _half(point)
        shift = mean(x[point] - wanted[point] for point in layer)
        for point in layer:
            x[point] -= shift
    left = min(x[point] - _half(point) for point in x) - 2
    top = BOX_HEIGHT / 2 + 2
    return {
        point: (x[point] - left, depth * LAYER_HEIGHT + top) for depth, layer in enumerate(layers) for point in layer
    }, routes


def _half(point: _Point) -> float:
    return (_box_width(point[0]) if len(point) == 1 else LANE_WIDTH) / 2


def _box_width(name: str) -> float:
    return max(LEAST_BOX_WIDTH, CHARACTER_WIDTH * len(name) + GAP)


def _arrow(points: Sequence[tuple[float, float]]) -> Markup:
    """Draw from the first box to the top of the last, vertical beside the boxes between them."""
    half = BOX_HEIGHT / 2
    path = "M{:.1f} {:.1f}".format(*points[0])
    for (x, y), (next_x, next_y) in pairwise(points):
        middle = (y + next_y) / 2
        path += f"V{y + half:.1f}C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {next_y - half:.1f}"
    return Markup('<path class="arrow" marker-end="url(#arrowhead)" d="{}"/>').format(path)


def _box(stage: Stage, result: str, centre: tuple[float, float]) -> Markup:
    width = _box_width(stage.name)
    return Markup(
        '<g class="stage" transform="translate({x:.1f} {y:.1f})"><title>{title}</title>'
        '<rect x="{left}" y="{top}" width="{w}" height="{h}" rx="6"/><text y="{baseline}">{name}</text>{result}</g>'
    ).format(
        x=centre[0], y=centre[1], title=stage.description, left=-width / 2, top=-BOX_HEIGHT / 2, w=width,
        h=BOX_HEIGHT, name=stage.name, baseline=-4 if result else 4,
        result=Markup('<text class="result" y="14">{}</text>').format(result) if result else "",
    )  # fmt: skip
