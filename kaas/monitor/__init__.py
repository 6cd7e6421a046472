"""The monitor: one CSV row for each GPU and sample, the same columns on a GPU node and on a laptop.

| column            | unit                           | on a laptop (on GPUs: see `nvidia_smi.py` and `nvml.py`)     |
| ----------------- | ------------------------------ | ------------------------------------------------------------ |
| `timestamp`       | s since the epoch, UTC         | when the sample was taken                                    |
| `gpu`             |                                | number of the GPU                                            |
| `bus_id`          |                                | `virtual:<number>`                                           |
| `uuid`            |                                |                                                              |
| `utilization_pct` | %                              | CPU time of its workers and what they start, of their cores  |
| `power_w`         | W                              |                                                              |
| `energy_j`        | J, counted since some time ago |                                                              |
| `memory_mib`      | MiB                            |                                                              |
| `sm_clock_mhz`    | MHz                            |                                                              |
| `temperature_c`   | degrees Celsius                |                                                              |
| `node`            |                                | of the engine `ray`: which has it, simulated or real         |

What is not known is an empty cell. Of emulated GPUs (`emulated.py`) only the utilization is, and their `bus_id` is
`emulated:<number>`.
"""
