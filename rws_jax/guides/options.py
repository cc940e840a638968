"""The options of `compile_guide`, checked."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rws_jax.checks.arguments import check_flag, check_int
from rws_jax.core.errors import fail


@dataclass(frozen=True, kw_only=True)
class GuideOptions:
    """See `compile_guide`."""

    embed: Callable | None = None
    networks: dict[str, Callable] = field(default_factory=dict)
    hidden: int = 64
    components: int = 4
    autoregressive: bool = True
    data_plates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    observed_sites: tuple[str, ...] = ()
    prefix: str = "guide"

    def data_sites(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Values of the sites that are data without being observed, None where these are not given."""
        observations = arguments.get("observations") or {}
        return {name: observations.get(name) for name in self.observed_sites}

    def __post_init__(self) -> None:
        check_int(self.hidden, "hidden", 1, expected="an int >= 1, units of a layer", hint="pass hidden=64, say")
        check_int(self.components, "components", 1, expected="an int >= 1", hint="pass components=4, say")
        check_flag(self.autoregressive, "autoregressive")
        for name, plates in self.data_plates.items():
            if isinstance(plates, str) or not all(isinstance(plate, str) for plate in plates):
                fail(
                    TypeError,
                    f"option 'data_plates' names no plates for argument {name!r}",
                    expected="a tuple with the name of a plate for each of its first axes; () if it has none",
                    found=f"{plates!r}",
                    hint=f"pass data_plates={{{name!r}: ('data',)}}, say",
                )
        if isinstance(self.observed_sites, str):
            fail(
                TypeError,
                "option 'observed_sites' is no tuple of names",
                expected="the names of sites that are data, as in observed_sites=('x',)",
                found=f"{self.observed_sites!r}",
                hint=f"pass observed_sites=({self.observed_sites!r},)",
            )
