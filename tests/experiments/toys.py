"""Settings that fit the trace of the fixture `toy`."""

TOY = ["model.layers=3", "model.experts=8", "model.top_k=2", "workload.batch=[1,3]"]
TOY += ["workload.prompt=8", "workload.generate=6", "cache_share=0.75"]
