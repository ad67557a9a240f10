"""How much memory a training step takes, foreseen without computing, and what makes it take less.

``ledger`` counts the bytes of tensors while a step runs on tensors without contents, ``foresight`` makes such a step of
a command's options, ``trace`` tells what each layer saves for the backward pass, ``segments`` and ``recompute`` are
checkpointing, ``fitting`` chooses for ``memory.budget``, ``measured`` compares with a real step in a fresh process.
"""
