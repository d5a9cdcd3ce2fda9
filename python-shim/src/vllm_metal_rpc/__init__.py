"""vLLM executor of metal-rpc: forwards scheduler steps to `metald`, which owns the device.

vLLM finds this package through two entry points (pyproject.toml), which are the functions below.

# Layout
- `platform`: what vLLM asks a device: defaults, limits, which executor and scheduler to use
- `validate`: which options and sampling parameters are served, kept by vLLM, or refused
- `executor`: vLLM's `Executor` methods, each turned into a message or answered here
- `scheduler`: vLLM's schedulers, able to recompute after the daemon lost the KV cache
- `convert`: vLLM's dataclasses to wire messages and back; pure
- `folders`: what a user names becomes a folder that `metald` reads; `gguf`, `torch_file`, `cache`
- `quantization`: quantised checkpoints, as vLLM's configuration is to see them
- `session`: set-up, steps, and recovery when the daemon is lost
- `link`: one open session on one connection; numbering and heartbeats
- `client`: the connection below it; the only file that names `zmq`
- `sealed`, `auth`: the same through a network, with a token; the exchange and the seals, pure
- `autostart`: starts `metald` when nothing listens
- `messages`: the wire structs, one to one with the `protocol` crate
- `alias`: the executor's short name, `metal-rpc`
- `envs`, `errors`, `progress`: environment variables; exceptions; the log of a load
"""


def register_platform() -> str:
    """Names the platform class. Entry point `vllm.platform_plugins`."""
    return "vllm_metal_rpc.platform.MetalRpcPlatform"


def register_alias() -> None:
    """Teaches vLLM the executor name `metal-rpc`. Entry point `vllm.general_plugins`.

    Runs in every process of vLLM, because each may resolve the name for itself.
    """
    from vllm_metal_rpc.alias import install

    install()
