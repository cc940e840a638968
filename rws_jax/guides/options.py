"""The options of `compile_guide`, checked."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rws_jax.checks.arguments import check_flag, check_int
from rws_jax.core.errors import describe, fail


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
        for option, network in [("embed", self.embed), *(("networks", net) for net in self.networks.values())]:
            if not (network is None or callable(network)) or isinstance(network, type):
                fail(
                    TypeError,
                    f"option {option!r} of compile_guide is no function",
                    expected="a function, or an instance of a module of flax.linen, flax.nnx or equinox",
                    found=describe(network),
                    hint="pass MyModule(...) and not MyModule, say",
                )
        if not (isinstance(self.prefix, str) and self.prefix):
            fail(
                TypeError,
                "option 'prefix' of compile_guide is no name",
                expected="text, the name of a param site",
                found=describe(self.prefix),
                hint="leave it out, or pass prefix='guide'",
            )
        for name, plates in self.data_plates.items():
            if not isinstance(plates, tuple | list) or not all(isinstance(plate, str) for plate in plates):
                fail(
                    TypeError,
                    f"option 'data_plates' names no plates for argument {name!r}",
                    expected="a tuple with the name of a plate for each of its first axes; () if it has none",
                    found=f"{plates!r}",
                    hint=f"pass data_plates={{{name!r}: ('data',)}}, say",
                )
        if isinstance(self.observed_sites, str) or not all(isinstance(name, str) for name in self.observed_sites):
            fail(
                TypeError,
                "option 'observed_sites' is no tuple of names",
                expected="the names of sites that are data, as in observed_sites=('x',)",
                found=f"{self.observed_sites!r}",
                hint="pass a tuple, also for one name: ('x',)",
            )
