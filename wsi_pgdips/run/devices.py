"""The device that was asked for, and whether it is there."""

from __future__ import annotations

from wsi_pgdips.errors import DeviceError


def check_name(device: str) -> None:
    """See that a device has a name that is known, be it here or not.

    Raises:
        DeviceError: it has not.
    """
    name, _, number = device.partition(":")
    if device in ("auto", "cpu") or (name == "cuda" and (device == name or number.isdecimal())):
        return
    raise DeviceError(
        "unknown device",
        expected="auto, cpu, cuda or cuda:N",
        found=device,
        where="--device",
    )


def device_for(asked: str, cluster: str) -> str:
    """The device of a job: as it was asked for where each worker is to look for its own.

    Raises:
        DeviceError: as ``choose_device``; of workers elsewhere only for an unknown name.
    """
    if cluster == "local":
        return choose_device(asked)
    check_name(asked)
    return asked


def choose_device(asked: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        DeviceError: CUDA was asked for and is not there, or the name is unknown.
    """
    import torch

    check_name(asked)
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    name, _, number = asked.partition(":")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "no GPU that torch can use was found",
            expected="a CUDA device",
            found="CUDA is not available to torch",
            where="--device",
            hint="run with --device cpu, or --device auto to use a GPU only where there is one",
        )
    if number and int(number) >= torch.cuda.device_count():
        raise DeviceError(
            "there is no such GPU",
            expected=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}",
            found=asked,
            where="--device",
        )
    return asked
