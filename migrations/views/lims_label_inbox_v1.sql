-- Where a LIMS writes labels by natural keys. marcod resolves every row, or gives the reason why it cannot yet.
create view lims_label_inbox_v1 as
select
    label_inbox.id as inbox_id,
    label_inbox.source as source,
    label_inbox.plate as plate,
    label_inbox.well as well,
    label_inbox.drop_number as drop_number,
    label_inbox.inspection as inspection,
    label_inbox.label as label,
    label_inbox.person as person,
    label_inbox.labelled_at as labelled_at,
    label_inbox.received_at as received_at,
    label_inbox.state as state,
    label_inbox.reason as reason
from label_inbox
