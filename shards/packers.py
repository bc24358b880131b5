"""The public data sets that can be packed: what the raw folder must contain, and which function packs it."""

from collections.abc import Callable

from shards.sources import llcm, regdb, sysu_mm01
from shards.writer import Packed

# name -> (what `--root` must contain, the packing function)
PACKERS: dict[str, tuple[str, Callable[..., Packed]]] = {
    sysu_mm01.NAME: ("cam1 to cam6 and exp/{train,val,test}_id.txt", sysu_mm01.pack),
    regdb.NAME: ("Visible, Thermal and idx/{train,test}_{visible,thermal}_{1..10}.txt", regdb.pack),
    llcm.NAME: ("vis, nir, test_vis, test_nir and idx/{train_vis,train_nir,test_id}.txt", llcm.pack),
}
