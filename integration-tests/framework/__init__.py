"""What the tests are written with. Nothing here is imported from the product.

# Layout
- `paths`: where the repository, the daemon and vLLM lie
- `daemon`: starts, watches and kills a real `metald`
- `wire`: the protocol's messages, written from protocol/PROTOCOL.md
- `frontend`: a frontend without vLLM; sends any message, right or wrong
- `network`: what is said on a daemon's TCP endpoint
- `load`: a frontend that is always busy, for benchmarks
- `greedy`: a scheduler of a page, for tests that want tokens from a `Frontend`
- `server`: `vllm serve` as a subprocess
- `offline`: `LLM(...)` in a process of its own, step by step
- `client`: the `openai` package, asking a server
- `models`: real and tiny checkpoints
- `quantise`: real weights in the layouts of AWQ and GPTQ
- `reference`: the same greedy tokens from transformers in float32
- `prompts`: what is asked
"""
