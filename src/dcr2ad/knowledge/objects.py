"""What inspected objects are called, and which domains of the built-in entries fit each of them.

Returns names, word lists and domains from one table; knows nothing about entries, files or models. The table covers the
objects of MMAD (MVTec-AD, MVTec-LOCO, VisA, GoodsAD), MPDD, Real-IAD, BTAD and of our own test photographs; an object that
is not in it is still handled, by its name alone and by the general domains. Not in the paper, which gives no such list.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple


class ObjectName(NamedTuple):
    """One object of the table."""

    name: str
    """Normalised name, for example ``metal_nut``."""
    words: tuple[str, ...]
    """Further words, in the singular, that a text may use for the object or its head noun."""
    domains: tuple[str, ...]
    """Domains of built-in entries that fit, the most specific first; the first gives the normal state."""
    kind: str
    """An object-agnostic description, used to tell imported titles apart."""


_ABBREVIATIONS = frozenset({"pcb", "usb", "sim"})

_DOMAIN_NAMES = """
general surface structural geometric colour contamination assembly logical packaging print textile metal polymer glass wood
ceramic board contact electrical cell food
"""
DOMAINS = tuple(_DOMAIN_NAMES.split())
"""Domains of the built-in entries: the middle part of their keys."""

GENERAL_DOMAINS = ("surface", "structural", "contamination", "general")
"""Domains for an object that is not in the table."""
MATERIALS = ("metal", "textile", "polymer", "glass", "wood", "ceramic", "board", "contact", "electrical", "cell", "food")
"""Domains of what a part is made of: their entries apply to objects of that material alone."""

_DATASETS = {
    "ds_mvtec": "mvtec",
    "mvtec_ad": "mvtec",
    "mvtecad": "mvtec",
    "loco": "mvtec_loco",
    "mvtec_loco_ad": "mvtec_loco",
    "realiad": "real_iad",
    "goods_ad": "goodsad",
    "kolektorsdd": "ksdd",
    "kolektor_sdd": "ksdd",
}

# name | further words | domains | object-agnostic kind
_TABLE = """
zipper | zip | textile structural metal | interlocking teeth
cable | cord | electrical structural assembly | insulated cores
toothbrush | brush, tooth brush | polymer contamination structural | bristle head
grid | mesh, wire mesh | metal structural contamination | crossed bars
transistor | | contact assembly structural | leaded package
pill | tablet | surface print contamination structural | pressed dose
metal_nut | nut | metal surface geometric | flanged ring
tile | | ceramic surface contamination | hard slab
capsule | | polymer print structural | two-part shell
hazelnut | nut | food structural surface | hard shell
screw | | metal structural surface | threaded shank
carpet | rug | textile contamination colour | woven ground
leather | hide | textile surface colour | grained sheet
wood | timber, wooden | wood surface colour | natural grain
bottle | | glass contamination structural | round opening
pushpins | pushpin, pin | logical assembly contamination | divided tray
breakfast_box | box | logical food contamination | meal compartments
screw_bag | bag | logical packaging assembly | hardware set
juice_bottle | bottle, juice | logical print packaging | labelled vessel
splicing_connectors | splicing connector, connector | logical electrical assembly | clamped pair
macaroni1 | macaroni, pasta | food surface structural | dry pieces in rows
macaroni2 | macaroni, pasta | food surface structural | scattered dry pieces
cashew | nut | food surface structural | curved kernel
candle | | polymer surface structural | moulded wax
pipe_fryum | fryum | food surface structural | hollow snack
fryum | | food surface structural | wheel-shaped snack
capsules | capsule | polymer contamination structural | soft shells
chewinggum | chewing gum, gum, soap bar, bar of soap, soap | food surface structural | soft piece
pcb1 | pcb, circuit board, board, printed circuit board | board contact contamination | sensor module
pcb2 | pcb, circuit board, board, printed circuit board | board contact contamination | receiver module
pcb3 | pcb, circuit board, board, printed circuit board | board contact contamination | detector module
pcb4 | pcb, circuit board, board, printed circuit board | board contact contamination | driver module
food_box | box, food box | packaging print structural | printed carton
cigarette_box | box, cigarette box | packaging print structural | foil-wrapped carton
food_bottle | bottle, food container | packaging print structural | rigid container
food_package | package | packaging print structural | flexible pack
drink_bottle | bottle | packaging print structural | closed container
drink_can | can, carton, beverage carton, beverage can, drink carton | packaging print structural | drink container
bracket_black | bracket | metal surface assembly | dark coated part
bracket_brown | bracket | metal surface assembly | riveted part
bracket_white | bracket | metal surface assembly | light coated part
connector | | metal assembly geometric | joined part
metal_plate | plate | metal surface colour | flat sheet
tubes | tube | metal geometric assembly | hollow profile
audiojack | audio jack, jack, audio plug, audio connector | contact polymer metal | ringed plug contact
bottle_cap | cap | polymer surface contamination | ribbed closure
button_battery | battery | metal surface contamination | coin-shaped cell
end_cap | cap | polymer surface structural | closing part
eraser | | polymer surface contamination | soft block
fire_hood | hood, firefighting hood, fire wood, firewood | metal surface contamination | pierced cover
mint | | food contamination structural | white lozenge
mounts | mount | polymer metal structural | fixing part
pcb | circuit board, board, printed circuit board | board contact contamination | populated circuit
phone_battery | battery | packaging surface metal | flat pouch
plastic_nut | nut | polymer surface structural | moulded ring
plastic_plug | plug | polymer surface structural | moulded stopper
porcelain_doll | doll | ceramic surface colour | glazed figure
regulator | | contact assembly surface | finned component
rolled_strip_base | strip base, base | metal surface structural | stamped frame
sim_card_set | sim card, card, sim, card set | polymer contact surface | thin tray
switch | | contact polymer assembly | actuated component
tape | | polymer contamination structural | wound roll
terminalblock | terminal block, terminal | contact polymer assembly | clamping block
toy | | polymer surface colour | painted figure
toy_brick | brick | polymer surface structural | studded block
transistor1 | transistor | contact assembly structural | leaded component
u_block | block | metal surface structural | channel-shaped part
usb | usb connector, usb port, usb plug, universal serial bus | contact metal polymer | shielded port
usb_adaptor | usb adapter, adaptor, adapter, usb, universal serial bus | polymer contact surface | housing with port
vcpill | pill, tablet | surface contamination structural | coloured dose
wooden_beads | wooden bead, bead, wooden | wood surface contamination | drilled sphere
woodstick | wood stick, wooden stick, stick | wood surface structural | slender rod
magnetic_tile | tile | ceramic surface structural | ground ceramic segment
printed_circuit_board | pcb, circuit board, board | board contact contamination | etched circuit
ball_screw | screw, spindle | metal surface contamination | rolling track
commutator | | metal surface structural | segmented ring
cookie | biscuit | food structural surface | baked disc
solar_cell | cell | cell surface structural | photovoltaic wafer
solar_cell_mono | solar cell, cell | cell surface structural | single-crystal wafer
solar_cell_poly | solar cell, cell | cell surface structural | multicrystal wafer
blister_pack | | logical packaging contamination | card of sealed domes
pressure_gauge | | logical print glass | dial with pointer
cover_plate | | assembly metal surface | screwed cover
01 | | polymer surface structural | dark moulded disc
02 | | wood surface structural | striped panel
03 | | metal surface structural | round plate
"""


@cache
def table() -> dict[str, ObjectName]:
    """The table by normalised name."""
    rows = {}
    for line in _TABLE.strip().splitlines():
        name, words, domains, kind = (cell.strip() for cell in line.split("|"))
        rows[name] = ObjectName(name, tuple(w.strip() for w in words.split(",") if w.strip()), tuple(domains.split()), kind)
    return rows


def normalise(name: str) -> str:
    """Lower case, every run of other characters than letters and digits one underscore.

    >>> normalise(" Magnetic-Tile ")
    'magnetic_tile'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def normalise_dataset(name: str) -> str:
    """As `normalise`, with one name for a data set that goes by several.

    >>> normalise_dataset("DS-MVTec")
    'mvtec'
    """
    plain = normalise(name)
    return _DATASETS.get(plain, plain)


def look_up(name: str) -> ObjectName | None:
    """The row of an object by its name, singular or plural; None where the table has none."""
    plain = normalise(name)
    for form in (plain, plain.removesuffix("s"), plain + "s"):
        if form in table():
            return table()[form]
    return None


def domains(name: str) -> tuple[str, ...]:
    """Domains of built-in entries that fit an object, the most specific first; the general ones for an unknown object."""
    row = look_up(name)
    return row.domains if row else GENERAL_DOMAINS


def foreign_materials(name: str) -> frozenset[str]:
    """Materials that an object is not made of; none for an object that the table does not hold.

    >>> "metal" in foreign_materials("magnetic tile"), "ceramic" in foreign_materials("magnetic tile")
    (True, False)
    """
    return frozenset(MATERIALS) - set(domains(name)) if look_up(name) else frozenset()


def spoken(name: str) -> str:
    """An object's name as one says it: blanks for underscores, no number at the end, abbreviations in capitals.

    >>> spoken("pipe_fryum"), spoken("pcb3"), spoken("sim_card_set")
    ('pipe fryum', 'PCB', 'SIM card set')
    """
    words = re.sub(r"(?<=[A-Za-z])[ _]*\d+$", "", name.replace("_", " ").replace("-", " ").strip()).split()
    return " ".join(word.upper() if word in _ABBREVIATIONS else word for word in words)


def plural(name: str) -> str:
    """Plural of a name in words; a name that is one already stays.

    >>> plural("box"), plural("battery"), plural("pushpins")
    ('boxes', 'batteries', 'pushpins')
    """
    if name.endswith("s") and not name.endswith(("ss", "us")):
        return name
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    return name[:-1] + "ies" if re.search(r"[^aeiou]y$", name) else name + "s"


def singular(name: str) -> str:
    """Singular of a name in words.

    >>> singular("boxes"), singular("batteries"), singular("capsules"), singular("glass")
    ('box', 'battery', 'capsule', 'glass')
    """
    if name.endswith("ies") and len(name) > 5 and name != "cookies":
        return name[:-3] + "y"
    if name.endswith(("xes", "ches", "shes", "sses")):
        return name[:-2]
    return name[:-1] if name.endswith("s") and not name.endswith(("ss", "us", "is")) else name
