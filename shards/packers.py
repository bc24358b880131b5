"""The data sets with folders and lists of their own: what the raw folder must hold, and which function packs it."""

from collections.abc import Callable

from shards.sources import llcm, regdb, sysu_mm01
from shards.writer import Packed

# name -> what `--root` must hold, and the packer
PACKERS: dict[str, tuple[str, Callable[..., Packed]]] = {
    sysu_mm01.NAME: ("cam1 to cam6 and exp/{train,val,test}_id.txt", sysu_mm01.pack),
    regdb.NAME: ("Visible, Thermal and idx/{train,test}_{visible,thermal}_{1..10}.txt", regdb.pack),
    llcm.NAME: ("vis, nir, test_vis, test_nir and idx/{train_vis,train_nir,test_id}.txt", llcm.pack),
}
