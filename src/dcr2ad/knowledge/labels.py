"""From a data set's labels to entries: the table of aliases.

Reads the aliases of `KnowledgeEntry` records; returns entries. Knows nothing about files. An alias is ``label``,
``dataset/label``, ``object/label`` or ``dataset/object/label``; case, blanks and hyphens do not count. `known_labels` lists
the defect labels of the public data sets, so that a test can hold that each of them leads to one entry. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dcr2ad.knowledge.objects import look_up, normalise, normalise_dataset, spoken
from dcr2ad.types import KnowledgeEntry

_RANK = {"own": 0, "mmad": 1, "real-iad": 1, "builtin": 2}
"""Who wins when two sources hold the same alias: the user's own entry, then the imported, then the built-in one."""

_KNOWN = """
mvtec bottle: broken_large broken_small contamination
mvtec cable: bent_wire cable_swap combined cut_inner_insulation cut_outer_insulation missing_cable missing_wire poke_insulation
mvtec capsule: crack faulty_imprint poke scratch squeeze
mvtec carpet: color cut hole metal_contamination thread
mvtec grid: bent broken glue metal_contamination thread
mvtec hazelnut: crack cut hole print
mvtec leather: color cut fold glue poke
mvtec metal_nut: bent color flip scratch
mvtec pill: color combined contamination crack faulty_imprint pill_type scratch
mvtec screw: manipulated_front scratch_head scratch_neck thread_side thread_top
mvtec tile: crack glue_strip gray_stroke oil rough
mvtec toothbrush: defective
mvtec transistor: bent_lead cut_lead damaged_case misplaced
mvtec wood: color combined hole liquid scratch
mvtec zipper: broken_teeth combined fabric_border fabric_interior rough split_teeth squeezed_teeth
mvtec_loco breakfast_box: logical_anomalies structural_anomalies
mvtec_loco juice_bottle: logical_anomalies structural_anomalies
mvtec_loco pushpins: logical_anomalies structural_anomalies
mvtec_loco screw_bag: logical_anomalies structural_anomalies
mvtec_loco splicing_connectors: logical_anomalies structural_anomalies
visa candle: bad
visa capsules: bad
visa cashew: bad
visa chewinggum: bad
visa fryum: bad
visa macaroni1: bad
visa macaroni2: bad
visa pcb1: bad
visa pcb2: bad
visa pcb3: bad
visa pcb4: bad
visa pipe_fryum: bad
goodsad cigarette_box: opened
goodsad drink_bottle: cap_half_open cap_open surface_damage
goodsad drink_can: deformation straw_missing surface_damage
goodsad food_bottle: deformation opened surface_damage
goodsad food_box: deformation opened surface_damage
goodsad food_package: broken surface_anomaly
mpdd bracket_black: hole scratches
mpdd bracket_brown: bend_and_parts_mismatch parts_mismatch
mpdd bracket_white: defective_painting scratches
mpdd connector: parts_mismatch
mpdd metal_plate: major_rust scratches total_rust
mpdd tubes: anomalous
btad 01: ko
btad 02: ko
btad 03: ko
real_iad audiojack: BX HS QS ZW
real_iad bottle_cap: AK HS QS ZW
real_iad button_battery: AK CH HS ZW
real_iad end_cap: HS PS QS ZW
real_iad eraser: AK HS QS ZW
real_iad fire_hood: AK HS QS ZW
real_iad mint: QS YW ZW
real_iad mounts: AK QS ZW
real_iad pcb: HS QS YW ZW
real_iad phone_battery: AK HS PS ZW
real_iad plastic_nut: AK HS QS ZW
real_iad plastic_plug: AK HS QS ZW
real_iad porcelain_doll: CH HS ZW
real_iad regulator: AK HS QS ZW
real_iad rolled_strip_base: AK QS ZW
real_iad sim_card_set: CH HS ZW
real_iad switch: HS QS ZW
real_iad tape: HS PS QS ZW
real_iad terminalblock: AK QS ZW
real_iad toothbrush: CH QS ZW
real_iad toy: AK HS QS ZW
real_iad toy_brick: AK HS QS ZW
real_iad transistor1: BX QS ZW
real_iad u_block: CH HS QS ZW
real_iad usb: BX HS QS ZW
real_iad usb_adaptor: AK CH HS ZW
real_iad vcpill: AK HS QS ZW
real_iad wooden_beads: AK HS QS ZW
real_iad woodstick: AK HS QS ZW
real_iad zipper: BX PS QS ZW
mtd magnetic_tile: blowhole break crack fray uneven
deeppcb pcb: open short mousebite spur spurious_copper pin_hole
ksdd commutator: crack
bsdata ball_screw: pitting
cookies cookie: cracked
elpv solar_cell_mono: defective crack finger inactive material
elpv solar_cell_poly: defective crack finger inactive material
"""


def known_labels() -> Iterator[tuple[str, str, str]]:
    """Data set, object and defect label of the public data sets, one triple a label (ELPV's finer labels are ours)."""
    for line in _KNOWN.strip().splitlines():
        where, labels = line.split(":")
        dataset, object_name = where.split()
        for label in labels.split():
            yield dataset, object_name, label


def normalise_alias(alias: str) -> str:
    """An alias with each of its parts normalised.

    >>> normalise_alias("DS-MVTec/Metal Nut/bent"), normalise_alias("Pin-hole")
    ('mvtec/metal_nut/bent', 'pin_hole')
    """
    *qualifiers, label = alias.split("/")
    return "/".join([normalise_dataset(part) for part in qualifiers] + [normalise(label)])


class LabelTable:
    """Aliases of a list of entries, the most trusted source first."""

    def __init__(self, entries: Sequence[KnowledgeEntry]) -> None:
        self._table: dict[str, KnowledgeEntry] = {}
        for entry in sorted(entries, key=lambda entry: _RANK.get(entry.source, 1)):
            for alias in entry.aliases:
                self._table.setdefault(normalise_alias(alias), entry)

    def find(self, dataset: str, object_name: str, label: str, *, qualified: bool = False) -> KnowledgeEntry | None:
        """The entry a label means, the most specific alias first; `qualified` leaves the plain label out."""
        data, word = normalise_dataset(dataset), normalise(label)
        names = _object_forms(object_name)
        forms = [f"{data}/{name}/{word}" for name in names] + [f"{name}/{word}" for name in names]
        forms.append(f"{data}/{word}")
        if not qualified:
            forms.append(word)
        for form in forms:
            if form in self._table:
                return self._table[form]
        return None

    def of_object(self, object_name: str, dataset: str | None = None) -> list[KnowledgeEntry]:
        """Entries that an object's known labels lead to, in their order; those of `dataset` alone where it has the object."""
        forms = _object_forms(object_name)
        triples = [triple for triple in known_labels() if triple[1] in forms]
        if dataset is not None and (wanted := normalise_dataset(dataset)) in {triple[0] for triple in triples}:
            triples = [triple for triple in triples if triple[0] == wanted]
        found = (self.find(*triple) for triple in triples)
        return list(dict.fromkeys(entry for entry in found if entry is not None))


def _object_forms(name: str) -> list[str]:
    """The normalised names an object may be filed under: its own, the table's, and its own without a number at the end."""
    row = look_up(name)
    return list(dict.fromkeys([normalise(name), *([row.name] if row else []), normalise(spoken(name))]))
