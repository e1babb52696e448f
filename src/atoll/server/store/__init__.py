"""What the server remembers: runs, rounds, contributions, members. One interface, three homes."""

from atoll.server.store.contract import (
    Contribution,
    Event,
    Invite,
    Lease,
    Member,
    RoundRow,
    RunRow,
    Store,
    Upload,
)

__all__ = [
    "Contribution",
    "Event",
    "Invite",
    "Lease",
    "Member",
    "RoundRow",
    "RunRow",
    "Store",
    "Upload",
]
