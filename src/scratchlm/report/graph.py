"""The graph of stages, read from dvc.yaml and drawn as SVG in layers from top to bottom."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from scratchlm.run.pipeline import paths, resolved_stages

BOX_WIDTH, BOX_HEIGHT = 152, 32
GAP, LANE_WIDTH, LAYER_HEIGHT = 20, 8, 68  # between neighbours; for an arrow that passes a layer; from layer to layer
SWEEPS = 8


class Stage(NamedTuple):
    """sources: the stages whose outputs this one reads, in the order of dvc.yaml."""

    name: str
    description: str
    sources: tuple[str, ...]


def stage_graph(pipeline: Mapping[str, Any], params: Mapping[str, Any]) -> list[Stage]:
    """The stages of a parsed dvc.yaml with `${...}` and `foreach` resolved, as `dvc dag` names them.

    A stage reads from another if a dependency is, holds or lies in one of the other's outputs. The stage `code`, from
    which every other one reads, is left out.
    """
    resolved = {name: stage for name, stage in resolved_stages(pipeline, params).items() if name != "code"}
    outputs = {
        name: [path for kind in ("outs", "metrics", "plots") for path in map(PurePosixPath, paths(stage.get(kind, [])))]
        for name, stage in resolved.items()
    }
    return [
        Stage(
            name,
            stage.get("desc", ""),
            tuple(
                other
                for other in resolved
                if other != name
                and any(_touch(PurePosixPath(d), o) for d in paths(stage.get("deps", [])) for o in outputs[other])
            ),
        )
        for name, stage in resolved.items()
    ]


def drawn_edges(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """The edges that no longer way implies (the transitive reduction): what the picture shows."""
    ancestors = {stage.name: _ancestors(stage.name, stages) for stage in stages}
    return [
        (source, stage.name)
        for stage in stages
        for source in stage.sources
        if not any(source in ancestors[other] for other in stage.sources)
    ]


def graph_svg(stages: Sequence[Stage]) -> Markup:
    """The picture: boxes in layers, each under everything that it reads, and arrows between them."""
    layers, routes = _layers(stages)
    places = _places(layers)
    for route in routes:
        _straighten(route, layers, places)
    width = max(x for x, _ in places.values()) + BOX_WIDTH / 2 + 2
    height = len(layers) * LAYER_HEIGHT - (LAYER_HEIGHT - BOX_HEIGHT) + 4
    parts = [_arrow([places[point] for point in route]) for route in routes]
    parts += [_box(stage, *places[(stage.name,)]) for stage in stages]
    return Markup(
        '<svg class="graph" role="img" aria-label="graph of stages" viewBox="0 0 {w:.0f} {h:.0f}" '
        'style="max-width:{w:.0f}px"><defs><marker id="arrowhead" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>{parts}</svg>'
    ).format(w=width, h=height, parts=Markup("").join(parts))


_Point = tuple[str, ...]  # (stage,), or (source, target, layer) where an arrow passes a layer


def _layers(stages: Sequence[Stage]) -> tuple[list[list[_Point]], list[list[_Point]]]:
    """Points per layer, ordered so that few arrows cross, and the points that each arrow joins.

    Source: Sugiyama et al. 1981, with barycentres.
    """
    depths: dict[str, int] = {}
    while len(depths) < len(stages):
        for stage in stages:
            if stage.name not in depths and all(source in depths for source in stage.sources):
                depths[stage.name] = 1 + max((depths[source] for source in stage.sources), default=-1)
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
    def barycentre(point: _Point) -> float:
        places = [place for place, other in enumerate(fixed) if (point, other) in joined]
        return sum(places) / len(places) if places else layer_place[point]

    layer_place = {point: place for place, point in enumerate(layer)}
    layer.sort(key=barycentre)


def _places(layers: Sequence[Sequence[_Point]]) -> dict[_Point, tuple[float, float]]:
    """The centre of every point; each layer is centred on the widest."""
    widths = [sum(map(_width, layer)) + GAP * (len(layer) - 1) for layer in layers]
    places = {}
    for row, layer in enumerate(layers):
        x = (max(widths) - widths[row]) / 2 + 2
        for point in layer:
            places[point] = (x + _width(point) / 2, row * LAYER_HEIGHT + BOX_HEIGHT / 2 + 2)
            x += _width(point) + GAP
    return places


def _straighten(route: Sequence[_Point], layers: Sequence[Sequence[_Point]], places: dict[_Point, Any]) -> None:
    """Move an arrow's points to one x, where it meets nothing in the layers that it passes."""
    lane = route[1:-1]
    others = [other for point in lane for other in layers[int(point[2])] if other != point]
    for x in [places[point][0] for point in (route[0], route[-1], *lane)]:
        if all(abs(places[other][0] - x) >= (_width(other) + LANE_WIDTH) / 2 + GAP / 2 for other in others):
            places.update({point: (x, places[point][1]) for point in lane})
            return


def _width(point: _Point) -> int:
    return BOX_WIDTH if len(point) == 1 else LANE_WIDTH


def _arrow(points: Sequence[tuple[float, float]]) -> Markup:
    """From the lower edge of the first box to the upper edge of the last, upright beside the boxes that it passes."""
    half = BOX_HEIGHT / 2
    x, y = points[0][0], points[0][1] + half
    way = f"M{x:.1f} {y:.1f}"
    for i, (next_x, centre) in enumerate(points[1:], start=2):
        top = centre - half
        middle = (y + top) / 2
        way += f"C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {top:.1f}"
        x, y = next_x, top
        if i < len(points):
            y = centre + half
            way += f"V{y:.1f}"
    return Markup('<path class="arrow" marker-end="url(#arrowhead)" d="{}"/>').format(way)


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


def _ancestors(name: str, stages: Sequence[Stage]) -> set[str]:
    sources = {stage.name: stage.sources for stage in stages}
    found: set[str] = set()
    waiting = list(sources[name])
    while waiting:
        source = waiting.pop()
        if source not in found:
            found.add(source)
            waiting += sources[source]
    return found


def _touch(a: PurePosixPath, b: PurePosixPath) -> bool:
    return a.is_relative_to(b) or b.is_relative_to(a)
