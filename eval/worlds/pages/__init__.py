"""Pages: drawn documents, and a model that is learning to read them.

`start/` is a model whose training is not finished, too weak to judge methods with: the vision encoder is (97 % of
characters), the decoder had 1,400 steps of 2,050 (`eval/results/pages_train_log.jsonl`). It goes on from there with
`python -m eval.worlds.train pages --start eval/worlds/pages/start --tower-steps 0 --skip 2000 --out runs/pages`.
"""
