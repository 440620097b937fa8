//! Notifications sent and to be sent.

use certctl_contract::{
    health::Outcome,
    list::{Page, Sort},
    notifications::*,
    problem::Kind,
};
use certctl_model::{notice::NoticeStatus, time::Time};
use certctl_store::outbox;
use sqlx::{FromRow, postgres::PgRow};

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Belongs, Column, Listed, Where},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(get).on(mark_read).on(resend)
}

impl Listed for Notification {
    type Filter = NotificationFilter;
    type Sort = NotificationSort;

    const KIND: &'static str = "notification";
    const COLUMNS: &'static str = "n.id, n.type, n.certificate_id, n.channel, n.recipient, n.subject, n.message,
        CASE WHEN n.read_at IS NULL THEN n.status ELSE 'read' END AS status, n.status AS delivery, n.attempts, n.error,
        n.sent_at, n.read_at, n.created_at";
    const FROM: &'static str = "notifications n";
    const ID: &'static str = "n.id";
    const BELONGS: Belongs = Belongs::Certificate("n.certificate_id");
    const DEFAULT: Sort<NotificationSort> = Sort {
        key: NotificationSort::CreatedAt,
        descending: true,
    };

    fn column(key: NotificationSort) -> Column {
        match key {
            NotificationSort::CreatedAt => Column::time("n.created_at"),
            NotificationSort::SentAt => Column::time("(coalesce(n.sent_at, '-infinity'))"),
        }
    }

    fn restrict(f: &NotificationFilter, sql: &mut Where<'_>) {
        match f.status {
            Some(NoticeStatus::Read) => sql.and("n.read_at IS NOT NULL"),
            Some(_) => {
                sql.and("n.read_at IS NULL");
                sql.eq("n.status", &f.status);
            }
            None => {}
        }
        sql.eq("n.status", &f.delivery);
        sql.eq("n.type", &f.r#type);
        sql.eq("n.channel", &f.channel);
        sql.eq("n.certificate_id", &f.certificate_id);
        sql.after("n.created_at", &f.created_after);
        sql.before("n.created_at", &f.created_before);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

async fn list(cx: Cx, rq: Request<ListNotifications>) -> Result<Page<Notification>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetNotification>) -> Result<Notification, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn mark_read(cx: Cx, rq: Request<MarkNotificationRead>) -> Result<Outcome, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    let done = sqlx::query("UPDATE notifications SET read_at = $2 WHERE id = $1 AND read_at IS NULL")
        .bind(&id)
        .bind(tx.now())
        .execute(&mut *tx)
        .await?;
    if done.rows_affected() == 0 {
        // Read before, or not there at all.
        let now: Time = tx.now();
        listing::get::<Notification>(&mut tx, now, id.as_str()).await?;
    } else {
        listing::commit(tx, "notification_read", "notification", id.as_str()).await?;
    }
    Ok(Outcome::of("marked_as_read"))
}

async fn resend(cx: Cx, rq: Request<ResendNotification>) -> Result<Outcome, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    if !outbox::resend(&mut tx, &id).await? {
        let now = tx.now();
        listing::get::<Notification>(&mut tx, now, id.as_str()).await?;
        return Err(ApiError::new(
            Kind::WrongState,
            format!("notification {id} is pending: it is being delivered, or tried again later"),
        ));
    }
    listing::commit(tx, "notification_resent", "notification", id.as_str()).await?;
    Ok(Outcome::of("pending"))
}
