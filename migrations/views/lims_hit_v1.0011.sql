-- Hits over all plates. Sort by p_crystals for the best, by found_at for the latest.
create view lims_hit_v1 as
select
    hit.id as hit_id,
    source.name as source,
    source.layout as layout,
    plate.key as plate_key,
    plate.barcode as barcode,
    plate.project as project,
    plate.screen as screen,
    "drop".id as drop_id,
    "drop".well as well,
    "drop".well_row as well_row,
    "drop".well_column as well_column,
    "drop".drop_number as drop_number,
    drop_summary.highest_p_crystals as p_crystals,
    drop_summary.label as label,
    drop_summary.label_person as label_person,
    hit.threshold as threshold,
    hit.cause as cause,
    hit.found_at as found_at,
    first_inspection.key as first_hit_inspection_key,
    first_inspection.ordinal as first_hit_inspection_ordinal,
    drop_summary.trend as trend,
    best_image.path as best_path,
    model_version.name as model,
    model_version.version as model_version,
    model_version.synthetic as model_synthetic,
    coalesce((
        select drop_mark.kind = 'harvested'
        from drop_mark
        where drop_mark.drop_id = "drop".id and drop_mark.kind in ('harvested', 'unharvested')
        order by drop_mark.marked_at desc, drop_mark.id desc
        limit 1
    ), false) as harvested
from hit
join drop_summary on drop_summary.drop_id = hit.drop_id and drop_summary.model_version_id = hit.model_version_id
join "drop" on "drop".id = hit.drop_id
join plate on plate.id = "drop".plate_id
join source on source.id = plate.source_id
join model_version on model_version.id = coalesce(hit.score_version_id, hit.model_version_id)
join shown_version on shown_version.model_version_id = hit.model_version_id
left join drop_summary as of_champion on of_champion.drop_id = hit.drop_id and of_champion.model_version_id = (
    select model_alias.model_version_id from model_alias where model_alias.alias = 'champion'
)
join inspection as first_inspection on first_inspection.id = drop_summary.first_hit_inspection_id
left join image as best_image on best_image.id = drop_summary.best_image_id
-- The champion's hits; and, where another version is shown for the drop and the champion has no hit, that one's.
where shown_version.is_champion or (
    of_champion.first_hit_inspection_id is null
    and exists (
        select 1
        from shown_drop
        where shown_drop.drop_id = hit.drop_id and shown_drop.model_version_id = hit.model_version_id
    )
)
