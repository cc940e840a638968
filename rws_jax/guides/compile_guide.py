"""`compile_guide`: an amortised guide, made from the model."""

from rws_jax.core.layers import ProgramFn
from rws_jax.guides.compiled import CompiledGuide


def compile_guide(
    model: ProgramFn,
    *,
    hidden: int = 64,
    components: int = 4,
    autoregressive: bool = True,
    data_plates: dict[str, tuple[str | None, ...]] | None = None,
    prefix: str = "guide",
) -> CompiledGuide:
    """An amortised guide, made from the model."""
    return CompiledGuide(
        model,
        hidden=hidden,
        components=components,
        autoregressive=autoregressive,
        data_plates=data_plates or {},
        prefix=prefix,
    )
