"""Context parallelism: ranks that share sequences, how these are cut, and how all ranks see all keys and values.

`split` says which rank has which token, `keys` what each reads of whom, `rings` who passes what to
whom, `order` how blocks of attention and what is sent stand beside each other, and `shared` brings
them together for a step.
"""
