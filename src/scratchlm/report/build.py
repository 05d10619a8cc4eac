"""What was built: the profile, the parameters that differ from it, the packages, the inputs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from scratchlm.report.tables import format_parameter
from scratchlm.run.display import without_secrets
from scratchlm.run.nested import flattened

OF_THE_MACHINE = ("device", "threads")  # parameters that change no result in precision `exact`
ABSENT = "–"


class Difference(NamedTuple):
    """A parameter that differs from the profile, both values as texts."""

    key: str
    profile: str
    own: str


def shown_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters without those that change no result, so that the page is the same on every machine."""
    exact = params["precision"] == "exact"
    return {key: value for key, value in params.items() if not (exact and key in OF_THE_MACHINE)}


def nearest_profile(
    params: Mapping[str, Any], profiles: Mapping[str, Mapping[str, Any]]
) -> tuple[str, list[Difference]]:
    """Return the profile that the fewest parameters differ from, the first of equals, and these parameters.

    Without profiles the name is empty. params: as shown_params returns them. profiles: by name, as in their files.
    """
    if not profiles:
        return "", []
    found = {name: _differences(params, values) for name, values in sorted(profiles.items())}
    name = min(found, key=lambda name: len(found[name]))
    return name, found[name]


def _differences(params: Mapping[str, Any], profile: Mapping[str, Any]) -> list[Difference]:
    own = flattened(params)
    theirs = flattened({key: value for key, value in profile.items() if key in params or key not in OF_THE_MACHINE})
    return [
        Difference(key, _text(theirs, key), _text(own, key))
        for key in dict.fromkeys((*own, *theirs))
        if _text(own, key) != _text(theirs, key)
    ]


def _text(values: Mapping[str, Any], key: str) -> str:
    return without_secrets(format_parameter(values[key])) if key in values else ABSENT
