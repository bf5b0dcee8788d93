"""Limit of open files of this process."""

import resource

from fa.utils.validation import check

_RESERVE = 256  # for the data set, the fork server, pipes and shared libraries


def raise_file_limit(argument: str, count: int, each: int) -> None:
    """Raise the soft limit of open files to what a server needs, at most to the hard limit.

    Args:
        argument: Name of the argument that sets the count, for the message.
        count: Number of workers.
        each: Files per worker.

    Raises:
        ValueError: The hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count * each + _RESERVE
    unlimited = hard == resource.RLIM_INFINITY
    most = max(0, (hard - _RESERVE) // each)
    cure = f"Raise the limit of open files (ulimit -Hn), which is {hard}."
    check(argument, count, unlimited or needed <= hard, f"at most {most}", cure)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
