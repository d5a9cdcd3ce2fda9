"""Measures metal-rpc beside the engines that people compare it with: see `scripts/bench --help`.

# Layout
- `__main__`: the command line, and the parts in their order
- `environments`: the engines' own Python environments, made on first use
- `engines`: which engine runs what; `contest`: all of them in turns, on the same work
- `machine`: what the machine can do; `end_to_end`: `vllm serve` under `vllm bench serve`;
  `boot`: start times and memory
- `records`: the JSON lines; `report`: the table; `workers/`: what runs in other environments
"""
