-- Every label people ever gave to a drop at an inspection, and whether it counts now; copies of an image are one.
create view lims_label_v1 as
select
    label.id as label_id,
    source.name as source,
    source.layout as layout,
    plate.key as plate_key,
    plate.barcode as barcode,
    inspection.key as inspection_key,
    inspection.ordinal as inspection_ordinal,
    "drop".well as well,
    "drop".well_row as well_row,
    "drop".well_column as well_column,
    "drop".drop_number as drop_number,
    image.path as path,
    label.label as label,
    label.original as original,
    label.vocabulary as vocabulary,
    label.person as person,
    label.origin as origin,
    label.labelled_at as labelled_at,
    label.recorded_at as recorded_at,
    label.label is not null and not exists (
        select 1
        from label as later
        left join image as later_image on later_image.id = later.image_id
        where later.drop_id = label.drop_id
            and later.inspection_id = label.inspection_id
            and coalesce(later_image.same_as_id, later.image_id, 0) = coalesce(image.same_as_id, label.image_id, 0)
            and later.person = label.person
            and (
                later.labelled_at > label.labelled_at
                or later.labelled_at = label.labelled_at and later.id > label.id
            )
    ) as counts
from label
join "drop" on "drop".id = label.drop_id
join inspection on inspection.id = label.inspection_id
join plate on plate.id = "drop".plate_id
join source on source.id = plate.source_id
left join image on image.id = label.image_id
