"""A stand-in for nvidia-smi: some GPUs whose compute mode it keeps, every call recorded. No NVIDIA software is here.

STAND_INS is the folder of its state: `modes/<n>` for each GPU, `calls`, and, to be set by a test:

    apps            what computes on the GPUs, as --query-compute-apps prints it
    hang            a running query says no more, but does not end, once
    refuse-mode     number of a GPU whose compute mode cannot be set, or that and the one mode that is refused
    hide-modes      compute modes cannot be read
    warns           a line that is said on stdout after every answer; the exit code is then 14, as for a damaged infoROM
    capability      the compute capability, if not 7.0
    mig             number of a GPU on which MIG is on
    cuda            how the driver says its CUDA version, if not "CUDA Version : 12.8"
    style           `units` (units, header and blanks), `na` ([N/A], [Not Supported] for what a GPU does not tell)
    unknown-fields  fields, one a line, that this driver does not know
    lost            number of a GPU that has fallen off the bus: nothing is told of any that is asked for with it
    lost-late       what is asked for and stands before the lost one is told of all the same, and then it ends
    lost-after      number of samples of the lost one's, too, after which a running query ends
    silent-until    a running query says nothing until this file is there
    burst           number of samples that a running query holds back and prints at once
    die-after       number of samples after which a running query ends with exit code 9, once
"""

import contextlib
import itertools
import os
import sys
import time
from datetime import datetime

STATE = os.environ["STAND_INS"]
ARGUMENTS = sys.argv[1:]


def told(name: str) -> str:
    with contextlib.suppress(FileNotFoundError), open(f"{STATE}/{name}") as file:
        return file.read().strip()
    return ""


def write(name: str, text: str, mode: str = "w") -> None:
    with open(f"{STATE}/{name}", mode) as file:
        file.write(text)


def gpus() -> list[int]:
    return sorted(map(int, os.listdir(f"{STATE}/modes")))


def option(name: str) -> str:
    for argument, following in itertools.zip_longest(ARGUMENTS, ARGUMENTS[1:], fillvalue=""):
        if argument == name:
            return following
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return ""


def value(gpu: int, field: str, sample: int) -> str:
    milliseconds = sample * 100
    known = {
        "timestamp": datetime.now().strftime("%Y/%m/%d %H:%M:%S.%f")[:-3],
        "index": str(gpu),
        "name": "Stand-in V100",
        "uuid": f"GPU-stand-in-{gpu}",
        "pci.bus_id": f"00000000:{0x15 + gpu:02X}:00.0",
        "driver_version": "570.00",
        "compute_cap": told("capability") or "7.0",
        "mig.mode.current": "Enabled" if told("mig") == str(gpu) else "[N/A]",
        "memory.total": "16384 MiB",
        "memory.free": "16000 MiB",
        "compute_mode": told("hide-modes") or told(f"modes/{gpu}"),
        "utilization.gpu": f"{40 + gpu} %",
        "power.draw": f"{100 + gpu}.50 W",
        "total_energy_consumption": f"{1000 * (100 + gpu) * milliseconds // 1000} mJ",
        "memory.used": "384 MiB",
        "clocks.sm": "1380 MHz",
        "temperature.gpu": "41",
    }
    text = known[field]
    if told("style") == "na" and field in {"power.draw", "utilization.gpu", "clocks.sm"}:
        return {"power.draw": "[N/A]", "utilization.gpu": "[Not Supported]"}.get(field, "[Unknown Error]")
    keeps_units = told("style") == "units" or "nounits" not in option("--format")
    return text if keeps_units or field in {"name", "timestamp"} else text.split(" ")[0]


def query() -> int:
    fields = option("--query-gpu").split(",")
    for field in fields:
        if field == "power.draw.instant" or field in told("unknown-fields").splitlines():
            print(f'Field "{field}" is not a valid field to query.\n')
            return 2
    only = [name for name in option("-i").split(",") if name]
    chosen = [gpu for gpu in gpus() if not only or f"GPU-stand-in-{gpu}" in only or str(gpu) in only]
    if told("style") == "units" or "noheader" not in option("--format"):
        print(", ".join(fields))
    pause = option("-lms")
    while pause and told("silent-until") and not os.path.exists(told("silent-until")):
        time.sleep(0.01)
    held_back: list[str] = []
    for sample in itertools.count(1):
        is_lost = told("lost") and int(told("lost")) in chosen and sample > int(told("lost-after") or 0)
        telling = chosen if not is_lost else chosen[: chosen.index(int(told("lost")))] if told("lost-late") else []
        held_back += [", ".join(value(gpu, field, sample) for field in fields) for gpu in telling]
        if not pause or sample % int(told("burst") or 1) == 0:
            print("".join(f"{line}\n" for line in held_back), end="", flush=True)
            held_back.clear()
        if is_lost:
            print("Unable to determine the device handle for GPU0000:16:00.0: Unknown Error")
            return 15
        if not pause:
            return 0
        if told("hang"):
            os.unlink(f"{STATE}/hang")
            time.sleep(3600)
        if told("die-after") and sample >= int(told("die-after")):
            os.unlink(f"{STATE}/die-after")
            return 9
        time.sleep(int(pause) / 1000)
    return 0


def set_mode() -> int:
    gpu = int(option("-i").rpartition("-")[2])
    if gpu not in gpus():
        print("No devices were found")
        return 6
    if told("refuse-mode") in {str(gpu), f"{gpu} {option('-c')}"}:
        print(f"Unable to set the compute mode for GPU {gpu}: Insufficient Permissions")
        return 4
    name = {"DEFAULT": "Default", "EXCLUSIVE_PROCESS": "Exclusive_Process", "PROHIBITED": "Prohibited"}[option("-c")]
    write(f"modes/{gpu}", name)
    print(f"Set compute mode to {option('-c')} for GPU 00000000:{0x15 + gpu:02X}:00.0.\nAll done.")
    return 0


def main() -> int:
    write("calls", " ".join(["nvidia-smi", *ARGUMENTS]) + "\n", "a")
    code = obey()
    if told("warns"):
        print(told("warns"))
    return code or (14 if told("warns") else 0)


def obey() -> int:
    if option("-c"):
        return set_mode()
    if option("--query-gpu"):
        return query()
    if option("--query-compute-apps"):
        print(told("apps"))
        return 0
    if "-q" in ARGUMENTS:
        print(f"Driver Version : 570.00\n{told('cuda') or 'CUDA Version : 12.8'}")
        return 0
    print(f"the stand-in does not know: {ARGUMENTS}")
    return 3


if __name__ == "__main__":
    sys.exit(main())
