-- One row per drop over all inspections of its plate, from people's labels and the version shown for the drop. The
-- model named is the one that gave the probabilities: for a file that is gone, the last that scored it.
create view lims_drop_v1 as
select
    "drop".id as drop_id,
    source.name as source,
    source.layout as layout,
    plate.key as plate_key,
    plate.barcode as barcode,
    plate.project as project,
    plate.screen as screen,
    "drop".well as well,
    "drop".well_row as well_row,
    "drop".well_column as well_column,
    "drop".drop_number as drop_number,
    drop_summary.label as label,
    drop_summary.label_person as label_person,
    drop_summary.label_disputed as label_disputed,
    drop_summary.p_clear as p_clear,
    drop_summary.p_crystals as p_crystals,
    drop_summary.p_other as p_other,
    drop_summary.p_precipitate as p_precipitate,
    inspection.key as inspection_key,
    inspection.ordinal as inspection_ordinal,
    image.path as path,
    drop_summary.inspections as inspections,
    drop_summary.hit as hit,
    drop_summary.highest_p_crystals as highest_p_crystals,
    best_image.path as best_path,
    best_inspection.key as best_inspection_key,
    first_inspection.key as first_hit_inspection_key,
    first_image.path as first_hit_path,
    hit.found_at as first_hit_found_at,
    drop_summary.trend as trend,
    model_version.name as model,
    model_version.version as model_version,
    model_version.synthetic as model_synthetic,
    drop_summary.updated_at as updated_at,
    coalesce((
        select drop_mark.kind = 'harvested'
        from drop_mark
        where drop_mark.drop_id = "drop".id and drop_mark.kind in ('harvested', 'unharvested')
        order by drop_mark.marked_at desc, drop_mark.id desc
        limit 1
    ), false) as harvested
from "drop"
join plate on plate.id = "drop".plate_id
join source on source.id = plate.source_id
join shown_drop on shown_drop.drop_id = "drop".id
join drop_summary on drop_summary.drop_id = shown_drop.drop_id
    and drop_summary.model_version_id = shown_drop.model_version_id
join model_version on model_version.id = coalesce(drop_summary.score_version_id, drop_summary.model_version_id)
join inspection on inspection.id = drop_summary.inspection_id
join image on image.id = drop_summary.image_id
left join image as best_image on best_image.id = drop_summary.best_image_id
left join inspection as best_inspection on best_inspection.id = best_image.inspection_id
left join inspection as first_inspection on first_inspection.id = drop_summary.first_hit_inspection_id
left join image as first_image on first_image.id = drop_summary.first_hit_image_id
left join hit on hit.drop_id = drop_summary.drop_id and hit.model_version_id = drop_summary.model_version_id
    and drop_summary.first_hit_inspection_id is not null
