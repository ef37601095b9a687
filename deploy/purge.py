"""`covariance purge`: say which received films may go, and let them go when told to."""

from __future__ import annotations

from rich.console import Console

from dicom_node.logs import configure_logs
from dicom_node.spool import Spool
from worker.ledger import open_ledger
from worker.ledger.store import utcnow
from worker.retain import Retainer
from worker.settings import Settings

_LISTED = 20


def purge_films(settings: Settings, *, really: bool) -> None:
    """Print what may go and, if `really`, have it go."""
    configure_logs(level="ERROR")
    console = Console(highlight=False, soft_wrap=True)
    with open_ledger(settings, migrate=False) as ledger:
        spool = Spool(settings.spool.path)
        # Ages are by the file system's clock, as the deliverer's: ours may be a day off.
        retainer = Retainer(settings, ledger, clock=spool.now if spool.root.is_dir() else utcnow)
        found = retainer.candidates()
        for one in found[:_LISTED]:
            console.print(f"{one.study_instance_uid}  {one.images} images, {one.size / 1e6:.1f} MB")
        if len(found) > _LISTED:
            console.print(f"and {len(found) - _LISTED} studies more")
        films, size = sum(one.images for one in found), sum(one.size for one in found)
        whole = f"{films} films of {len(found)} studies, {size} bytes"
        days = f"older than {settings.retention.keep_days:g} days, all results proven"
        if not really:
            console.print(f"{whole} would go ({days}). Nothing was removed: --yes does it.")
            return
        retainer.finish()
        console.print(f"{retainer.purge()} films purged ({days}).")
        if stubborn := ledger.leaving(limit=1000):
            console.print(
                f"{len(stubborn)} of them the disk did not let go: the deliverer tries again.", style="red"
            )
