"""Readers: one file for each data set, or family of data sets in one layout.

To add a reader: one file that begins with the model of its options and ends in its `LAYOUT`, one
entry in `READERS`, and one test.
"""

from collections.abc import Mapping

from ray_reid.datasets.readers import (
    ccvid,
    cityflow,
    compcars,
    cuhk02,
    cuhk03,
    cuhk03_np,
    cuhk_sysu,
    dlcr,
    dukemtmc,
    folder,
    grid,
    ilids,
    imagefolder,
    last,
    ltcc,
    market1501,
    miniature,
    mot,
    msmt17,
    oml,
    parquet,
    prcc,
    prid2011,
    vc_clothes,
    vehicleid,
    vehiclex,
    veri776,
    veriwild,
    viper,
)
from ray_reid.datasets.reading import Layout

READERS: Mapping[str, Layout] = {
    "miniature": miniature.LAYOUT,
    "imagefolder": imagefolder.LAYOUT,
    "folder": folder.LAYOUT,
    "oml": oml.LAYOUT,
    "parquet": parquet.LAYOUT,
    "mot": mot.LAYOUT,
    "market1501": market1501.LAYOUT,
    "dukemtmc": dukemtmc.LAYOUT,
    "msmt17": msmt17.LAYOUT,
    "cuhk03": cuhk03.LAYOUT,
    "cuhk03_np": cuhk03_np.LAYOUT,
    "viper": viper.LAYOUT,
    "prid2011": prid2011.LAYOUT,
    "grid": grid.LAYOUT,
    "ilids": ilids.LAYOUT,
    "cuhk02": cuhk02.LAYOUT,
    "cuhk_sysu": cuhk_sysu.LAYOUT,
    "prcc": prcc.LAYOUT,
    "ltcc": ltcc.LAYOUT,
    "vc_clothes": vc_clothes.LAYOUT,
    "ccvid": ccvid.LAYOUT,
    "last": last.LAYOUT,
    "dlcr": dlcr.LAYOUT,
    "vehiclex": vehiclex.LAYOUT,
    "veri776": veri776.LAYOUT,
    "vehicleid": vehicleid.LAYOUT,
    "veriwild": veriwild.LAYOUT,
    "cityflow": cityflow.LAYOUT,
    "compcars": compcars.LAYOUT,
}
"""Layouts by the name that a recipe calls their reader by."""
