-- Every note and every mark that people set on drops, and whether it counts now.
create view lims_drop_mark_v1 as
select
    drop_mark.id as mark_id,
    source.name as source,
    source.layout as layout,
    plate.key as plate_key,
    plate.barcode as barcode,
    inspection.key as inspection_key,
    inspection.ordinal as inspection_ordinal,
    drop_mark.drop_id as drop_id,
    "drop".well as well,
    "drop".well_row as well_row,
    "drop".well_column as well_column,
    "drop".drop_number as drop_number,
    drop_mark.kind as kind,
    drop_mark.text as text,
    drop_mark.person as person,
    drop_mark.marked_at as marked_at,
    drop_mark.kind = 'note' or drop_mark.kind = 'harvested' and not exists (
        select 1
        from drop_mark as later
        where later.drop_id = drop_mark.drop_id
            and later.kind in ('harvested', 'unharvested')
            and (
                later.marked_at > drop_mark.marked_at
                or later.marked_at = drop_mark.marked_at and later.id > drop_mark.id
            )
    ) as counts
from drop_mark
join "drop" on "drop".id = drop_mark.drop_id
join inspection on inspection.id = drop_mark.inspection_id
join plate on plate.id = "drop".plate_id
join source on source.id = plate.source_id
