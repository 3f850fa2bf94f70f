"""Prediction over many images: a manifest cut into shards, one file of results a shard, any number of machines.

`sources` names the images, `plan` cuts them into shards, `leases` keeps two workers from the same shard, `shard`
predicts one, `worker` takes one after the other, `merging` joins the files; `folder.predict_folder` is all of it.
"""
