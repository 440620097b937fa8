//! Notifications sent and to be sent.

use certctl_model::{
    id::{CertificateId, NotificationId},
    notice::{Channel, NoticeKind, NoticeStatus},
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    health::Outcome,
    list::{List, Page},
    query::Id,
};

crate::resource! {
    notifications "/api/v1/notifications";

    /// List notifications, newest first unless sorted.
    GET "" ListNotifications(query: List<NotificationFilter, NotificationSort>,) [Needs(View), Rows] -> 200 Page<Notification>;
    /// Fetch one notification.
    GET "/{id}" GetNotification(path: Id<NotificationId>,) [Needs(View), Rows] -> 200 Notification;
    /// Mark a notification as read. One that is not sent yet is sent all the same.
    POST "/{id}/read" MarkNotificationRead(path: Id<NotificationId>,) [Needs(Operate)] -> 200 Outcome;
    /// Send a notification again that was sent, given up or skipped. 409 while it is still being delivered.
    POST "/{id}/resend" ResendNotification(path: Id<NotificationId>,) [Needs(Operate)] -> 200 Outcome;
}

crate::query! {
    /// Which notifications.
    pub struct NotificationFilter {
        /// Only notifications of this status: `read`, or how the delivery of one that is not read stands.
        status: NoticeStatus,
        /// Only notifications whose delivery stands so, read or not.
        delivery: NoticeStatus,
        /// Only notifications about this.
        r#type: NoticeKind,
        /// Only notifications that go there.
        channel: Channel,
        /// Only notifications about this certificate.
        certificate_id: CertificateId,
        /// Only notifications created after this time.
        created_after: Time,
        /// Only notifications created before this time.
        created_before: Time,
    }
}

crate::sort_keys! {
    /// How notifications are sorted.
    pub enum NotificationSort { CreatedAt = "createdAt", SentAt = "sentAt" }
}

/// A notification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct Notification {
    /// Its id.
    pub id: NotificationId,
    /// What it is about.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "sqlx", sqlx(rename = "type"))]
    pub kind: NoticeKind,
    /// Which certificate it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_id: Option<CertificateId>,
    /// Where it goes.
    pub channel: Channel,
    /// To whom.
    pub recipient: String,
    /// One line.
    pub subject: String,
    /// The text.
    pub message: String,
    /// `read`, or how its delivery stands.
    pub status: NoticeStatus,
    /// How its delivery stands, read or not.
    pub delivery: NoticeStatus,
    /// How often it was tried.
    pub attempts: i32,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Time>,
    /// When it was first marked as read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_at: Option<Time>,
    /// When it was created.
    pub created_at: Time,
}
