"""The TensorRT engine of this process: the plan for its card, from the cache or built now, and running."""

from __future__ import annotations

import time

from dicom_node.logs import get_logger
from worker.bundle import Bundle
from worker.engines import DeviceUnavailable
from worker.engines.buckets import buckets_up_to
from worker.engines.tensorrt.builder import CONFIG_FLAGS, FLAGS, PRECISION, build_plan
from worker.engines.tensorrt.cuda import Card, Cuda
from worker.engines.tensorrt.execution import PlanExecutor, PlanRejected
from worker.engines.tensorrt.library import Library, find_library
from worker.engines.tensorrt.plan_cache import PlanCache, PlanKey
from worker.settings import WorkerSection

log = get_logger("tensorrt")

_FOLDER = "tensorrt"


def open_tensorrt(bundle: Bundle, settings: WorkerSection) -> PlanExecutor:
    """Load or build the plan for this card, in the thread that will run it.

    Raises:
        ConfigurationError: the model cannot be built, or the cache cannot be used.
        DeviceUnavailable: TensorRT or a GPU is missing, or has too little memory.
    """
    library = find_library()
    cuda = Cuda()
    buckets, size = buckets_up_to(settings.max_batch), bundle.manifest.size
    card = cuda.card()
    require_support(library, card)
    key = plan_key(library, card, bundle, buckets)
    cache = PlanCache(settings.engine_cache / _FOLDER)
    plan = plan_for(key, library, bundle, cache)
    try:
        return PlanExecutor(library, cuda, plan, buckets=buckets, size=size)
    except PlanRejected as error:
        # The key is right and the plan is whole: something changed that the key does not know of.
        log.warning("plan_rejected", why=str(error))
        cache.drop(key)
    plan = plan_for(key, library, bundle, cache)
    try:
        return PlanExecutor(library, cuda, plan, buckets=buckets, size=size)
    except PlanRejected as error:
        raise DeviceUnavailable(
            f"{error} It was built here just now: look at the driver, or set another worker.engine."
        ) from None


def require_support(library: Library, card: Card) -> None:
    """Refuse a card that TensorRT-RTX builds plans for and does not load them on, before minutes are spent.

    Raises:
        DeviceUnavailable: it is one.
    """
    known = getattr(library.trt, "ComputeCapability", None)
    if library.name != "tensorrt_rtx" or known is None:
        return
    if not hasattr(known, f"SM{card.compute_capability.replace('.', '')}"):
        raise DeviceUnavailable(
            f"{library.name} {library.version} does not run on {card.name} (compute capability "
            f"{card.compute_capability}): install tensorrt, or set another worker.engine."
        )


def plan_key(library: Library, card: Card, bundle: Bundle, buckets: tuple[int, ...]) -> PlanKey:
    """All that the plan of this bundle for this card depends on."""
    return PlanKey(
        library=library.name,
        version=library.version,
        compute_capability=card.compute_capability,
        card=card.name,
        driver=card.driver,
        onnx_sha256=bundle.manifest.model.sha256,
        precision=PRECISION,
        buckets=buckets,
        size=bundle.manifest.size,
        flags=FLAGS + CONFIG_FLAGS,
    )


def plan_for(key: PlanKey, library: Library, bundle: Bundle, cache: PlanCache) -> bytes:
    """The plan of that key, built when the cache has none.

    Raises:
        ConfigurationError: as `build_plan` and `PlanCache.get`.
    """

    def build() -> bytes:
        started = time.monotonic()
        plan = build_plan(library, bundle.model(), buckets=key.buckets, size=key.size)
        log.info("plan_built", seconds=round(time.monotonic() - started, 1), bytes=len(plan))
        return plan

    return cache.get(key, build)
